"""A dump at a glance: what was dumped, and its runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hf_dumper.core.types import ALIASED, STORED
from hf_dumper.report.numbers import NOTHING, plural, size
from hf_dumper.report.records import IndexedReader, ranges

_PARTS = {0: "inputs", 1: "outputs", 2: "inputs and outputs"}
_SUMS = ("run", "tokens", "tensors", "bytes")
_KEPT = {0: "tensors", 1: "statistics only", 2: "tensors and statistics"}


def overview(reader: IndexedReader) -> RenderableType:
    """Return the facts of a dump and a table of its runs."""
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(reader).items():
        facts.add_row(name, Text(value))
    title = Text.assemble(("Dump ", "bold"), (str(reader.path), "bold cyan"))
    runs = [summary(reader, run) for run in reader.runs()]
    table = _runs(runs) if runs else Text("There are no runs in this dump.")
    return Group(title, facts, "", table)


def summary(reader: IndexedReader, run: int) -> dict[str, Any]:
    """Return the sums of a run, JSON-ready; those of a run cut off are taken from its index.

    `tokens` are the indices of the dumped ones, `generated` is how many the model made.
    """
    info = reader.run_info(run)
    table = reader.index(run)
    status = table.column("status")
    stored = table.filter(pc.and_(pc.equal(status, STORED), pc.is_valid(table.column("shard"))))
    prompt, answers = info.get("prompt") or {}, info.get("generated_ids")
    return {
        "run": run,
        "complete": info.get("complete") is True,
        "incomplete": _why(info),
        "kind": info.get("kind"),
        "tokens": sorted(pc.unique(table.column("token")).to_pylist()),
        "generated": max(map(len, answers), default=0) if answers is not None else None,
        "forwards": len(pc.unique(table.column("forward"))),
        "records": table.num_rows,
        "shared": pc.sum(pc.equal(status, ALIASED)).as_py() or 0,
        "bytes": pc.sum(stored.column("nbytes")).as_py() or 0,
        "prompt": prompt.get("text"),
        "text": info.get("generated_text"),
        "skipped_by_reason": (info.get("counts") or {}).get("skipped_by_reason") or {},
    }


def disk_usage(folder: Path) -> tuple[int, int]:
    """Return the number of files below a folder and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def _why(info: Mapping[str, Any]) -> str | None:
    if info.get("complete") is True:
        return None
    return info.get("incomplete") or "still running, or stopped before its end"


def _facts(reader: IndexedReader) -> dict[str, str]:
    manifest = reader.manifest
    identity = manifest.get("identity") or {}
    files, nbytes = disk_usage(reader.path)
    facts = {
        "model": _model(manifest, identity),
        "dumped": _dumped(identity.get("dump_config") or {}),
        "made": _made(manifest),
        "on disk": f"{size(nbytes)} in {plural(files, 'file')}",
    }
    if "self_check" in manifest:
        facts["self-check"] = self_check_line(manifest["self_check"])
    return facts


def self_check_line(check: Mapping[str, Any]) -> str:
    """Return one line for what a self-check came to."""
    compared = check.get("compared", "")
    if check.get("identical"):
        return f"passed: with and without dumping the same {compared}"
    line = f"FAILED: {check.get('first_difference')} ({compared})"
    if check.get("repeatable", True):
        return line
    return f"{line}. The plain model does not repeat itself either: try a seed."


def _model(manifest: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    parts = [str(identity.get("class") or "unnamed model")]
    if isinstance(manifest.get("parameters"), int):
        parts.append(plural(manifest["parameters"], "parameter"))
    parts.append(str(identity.get("dtype")).removeprefix("torch."))
    if identity.get("attn_implementation"):
        parts.append(f"{identity['attn_implementation']} attention")
    source = manifest.get("model")
    return ", ".join(parts) + (f", from {source}" if source else "")


def _dumped(options: Mapping[str, Any]) -> str:
    if not options:
        return NOTHING
    wanted = options.get("token_range")
    if wanted is None:
        chosen = "token 0 (the prefill)"
    elif wanted == "all":
        chosen = "every token"
    else:
        shown = wanted if isinstance(wanted, str) else ranges(sorted(set(wanted)))
        chosen = f"tokens {shown}"
    if options.get("dump_last_logits"):
        return f"{chosen}; logits, scores and ids only"
    names = [options.get("layer_name"), options.get("module_list")]
    which = [", ".join([n] if isinstance(n, str) else n) for n in names if n]
    parts = [chosen, f"modules {' of class '.join(which)}" if which else "every module"]
    parts.append(_PARTS.get(options.get("tensor_part", 2), NOTHING))
    parts.append(_KEPT.get(options.get("dump_statistics_mode", 0), NOTHING))
    return "; ".join(parts)


def _made(manifest: Mapping[str, Any]) -> str:
    when = str(manifest.get("created") or NOTHING).replace("T", " ").replace("+00:00", " UTC")
    versions = manifest.get("versions") or {}
    shown = [f"{n} {versions[n]}" for n in ("hf_dumper", "transformers", "torch") if n in versions]
    seed = manifest.get("seed")
    return ", ".join([when, *shown, *([f"seed {seed}"] if seed is not None else [])])


def _runs(runs: list[dict[str, Any]]) -> RenderableType:
    rows = [
        (
            str(run["run"]),
            ranges(run["tokens"]),
            f"{run['records']:,}",
            size(run["bytes"]) if run["bytes"] else NOTHING,
        )
        for run in runs
    ]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name, cells in zip(_SUMS, zip(*rows, strict=True), strict=True):
        widest = max(map(len, (name, *cells)))  # or a long prompt would take their room
        table.add_column(name, justify="right", no_wrap=True, min_width=widest)
    table.add_column("prompt → what the model wrote", overflow="ellipsis", no_wrap=True)
    for row, run in zip(rows, runs, strict=True):
        table.add_row(*row, conversation(run))
    broken = [run for run in runs if not run["complete"]]
    notes = [Text(f"Run {r['run']} is INCOMPLETE: {r['incomplete']}", "red") for r in broken]
    return Group(table, *notes)


def conversation(run: Mapping[str, Any]) -> Text:
    """Return the prompt and the answer of the first row of a run, on one line."""
    if not run.get("prompt"):
        return Text(NOTHING if run["kind"] != "forward" else "(a forward outside generate())")
    answer = (run.get("text") or [""])[0]
    rows = len(run["prompt"])
    more = f" (and {plural(rows - 1, 'row')})" if rows > 1 else ""
    return Text.assemble(
        printable(run["prompt"][0]), (" → ", "dim"), (printable(answer), "green"), more
    )


def printable(text: str) -> str:
    """Return a text on one line, and without what would steer the terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
