"""A dump at a glance: what was dumped, and its runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from hf_dumper.core.types import ALIASED, STORED
from hf_dumper.report.numbers import NOTHING, plural, size
from hf_dumper.report.records import IndexedReader, ranges, tokens

_PARTS = {0: "inputs", 1: "outputs", 2: "inputs and outputs"}
_ARROW = " → "
_SUMS = ("run", "tokens", "tensors", "bytes")
_KEPT = {0: "tensors", 1: "statistics only", 2: "tensors and statistics"}


def overview(reader: IndexedReader) -> RenderableType:
    """Return the facts of a dump and a table of its runs."""
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(reader).items():
        facts.add_row(name, Text(value))
    title = Text.assemble(
        ("Dump ", "bold"), (str(getattr(reader, "url", reader.path)), "bold cyan")
    )
    runs = [summary(reader, run) for run in reader.runs()]
    table: RenderableType = RunTable(runs) if runs else Text("There are no runs in this dump.")
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
        "tokens": tokens(reader, run),
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
        "fetched so far"
        if hasattr(reader, "url")
        else "on disk": f"{size(nbytes)} in {plural(files, 'file')}",
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


class RunTable:
    """A renderable: a line per run, in which the conversation gets the room that is left.

    A table of rich would take that room from the sums.
    """

    def __init__(self, runs: Sequence[Mapping[str, Any]]) -> None:
        """Show what `summary` returned of each run."""
        self._runs = runs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        rows = [_sums(run) for run in self._runs]
        widths = [max(map(len, column)) for column in zip(_SUMS, *rows, strict=True)]
        room = max(8, options.max_width - sum(widths) - 2 * len(widths))
        yield Text(_padded(_SUMS, widths) + f"prompt{_ARROW}what the model wrote", "dim")
        for cells, run in zip(rows, self._runs, strict=True):
            yield Text(_padded(cells, widths)) + conversation(run, room)
        for run in self._runs:
            if not run["complete"]:
                yield Text(f"Run {run['run']} is INCOMPLETE: {run['incomplete']}", "red")


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{cell:>{width}}  " for cell, width in zip(cells, widths, strict=True))


def _sums(run: Mapping[str, Any]) -> tuple[str, ...]:
    nbytes = size(run["bytes"]) if run["bytes"] else NOTHING
    return str(run["run"]), ranges(run["tokens"]), f"{run['records']:,}", nbytes


def conversation(run: Mapping[str, Any], room: int) -> Text:
    """Return the prompt and the answer of the first row of a run on one line of `room` cells.

    Of a long prompt the end is kept, since that is what the model goes on from.
    """
    if not run.get("prompt"):
        line = Text(NOTHING if run["kind"] != "forward" else "(a forward outside generate())")
    else:
        prompt, answer = printable(run["prompt"][0]), printable((run.get("text") or [""])[0])
        rows = len(run["prompt"])
        more = f" (and {plural(rows - 1, 'row')})" if rows > 1 else ""
        most = max(room // 2, room - cell_len(answer) - len(_ARROW) - len(more))
        if cell_len(prompt) > most:
            prompt = "…" + prompt[len(prompt) - most + 1 :]
        line = Text.assemble(prompt, (_ARROW, "dim"), (answer, "green"), more)
    line.truncate(room, overflow="ellipsis")
    return line


def printable(text: str) -> str:
    """Return a text on one line, and without what would steer the terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
