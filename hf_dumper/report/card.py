"""The card of a dump on a hub: what people read, and what tells `datasets` where the tables are."""

import re
from collections.abc import Mapping
from typing import Any, Final

from hf_dumper.core.protocols import DumpReader
from hf_dumper.core.types import STORED
from hf_dumper.hub.names import RepoName
from hf_dumper.report.numbers import plural, size

CARD: Final = "README.md"

TAG: Final = "hf_dumper"
"""Tag by which a card of ours is recognised."""

TABLES: Final = ("index", "positions", "trace")
"""Tables that `load_dataset` knows by name, the first unless another is asked for."""


def card(reader: DumpReader, repo: RepoName, incomplete: Mapping[int, str]) -> str:
    """Return the text of the card; `incomplete` names the runs that are not whole, and why."""
    from huggingface_hub import DatasetCardData

    head = DatasetCardData(pretty_name=repo.id, tags=[TAG], configs=_configs(reader))
    lines = [f"# Dump of {_model(reader.manifest)}", "", *_facts(reader), "", *_usage(repo)]
    if incomplete:
        lines += ["", "Runs that are not whole:", ""]
        lines += [f"- run {run}: {_plain(why)}" for run, why in incomplete.items()]
    return f"---\n{head.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def _configs(reader: DumpReader) -> list[dict[str, Any]]:
    """Return the tables that the dump has."""
    found: list[dict[str, Any]] = []
    for table in TABLES:
        if any(reader.path.rglob(f"{table}.parquet")):
            config = {"config_name": table, "data_files": f"**/{table}.parquet"}
            found.append(config | ({"default": True} if not found else {}))
    return found


def _facts(reader: DumpReader) -> list[str]:
    identity = reader.manifest.get("identity") or {}
    rows = [reader.index(run) for run in reader.runs()]
    stored = sum(
        nbytes or 0
        for table in rows
        for nbytes, status in zip(
            table.column("nbytes").to_pylist(), table.column("status").to_pylist(), strict=True
        )
        if status == STORED
    )
    count = plural(sum(table.num_rows for table in rows), "record")
    dtype = str(identity.get("dtype")).removeprefix("torch.")
    facts = {
        "model": _public(str(reader.manifest.get("model") or "not named")),
        "weights hash": identity.get("weights_hash") or "not hashed",
        "dtype": dtype,
        "attention": identity.get("attn_implementation") or "not named",
        "contents": f"{plural(len(rows), 'run')}, {count}, {size(stored)} of tensors",
        "versions": ", ".join(
            f"{name} {version}" for name, version in (reader.manifest.get("versions") or {}).items()
        ),
    }
    return [f"- {name}: {_plain(str(value))}" for name, value in facts.items()]


def _usage(repo: RepoName) -> list[str]:
    return [
        "What went into and came out of every module, written by hf_dumper:",
        "",
        "```python",
        "from hf_dumper import open_dump",
        "",
        f'dump = open_dump("{repo}")  # fetches what is asked for, and no more',
        "print(dump)",
        "```",
        "",
        "The index, a row per tensor, with shapes, hashes and statistics:",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'index = load_dataset("{repo.id}", split="train")',
        "```",
    ]


def _model(manifest: Mapping[str, Any]) -> str:
    return _plain(str((manifest.get("identity") or {}).get("class") or "a model"))


def _public(name: str) -> str:
    """Return a model's name; of a folder of this machine the last part, since others read it."""
    is_folder = name.startswith(("/", "~", ".", "\\")) or name[1:2] == ":" or "\\" in name
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1] if is_folder else name


def _plain(text: str) -> str:
    """Return a text of the dump, which may come from anywhere, without markup or line breaks."""
    flat = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|" else c for c in flat)
