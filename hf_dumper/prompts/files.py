"""Local files of prompts: what they are, and what must be told to read each as it is written."""

import csv
from pathlib import Path
from typing import Any, Final

from hf_dumper.core.names import near
from hf_dumper.errors import PromptError

SUFFIXES: Final = {
    ".txt": "text",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
"""Suffix of a file of prompts -> loader of `datasets`."""

RAGGED: Final = "Length of header or names does not match length of data"
"""How pandas begins to tell that it drops the cells beyond the header's."""


def looks_local(source: str) -> bool:
    """Tell whether a source is a path, be there something or not; else it is a name on the hub."""
    path = Path(source).expanduser()
    if path.exists() or path.suffix.lower() in SUFFIXES:
        return True
    return source.startswith((".", "~", "/")) or "\\" in source or source.count("/") > 1


def loader_of(path: Path) -> str:
    """Return the loader of `datasets` that reads a file.

    Raises:
        PromptError: there is no such file, or its suffix says nothing.
    """
    if not path.exists():
        msg = f"There is no file {str(path)!r}.{neighbours(path)}"
        raise PromptError(msg)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        msg = f"Cannot tell from the suffix what {path} holds. Known: {', '.join(SUFFIXES)}."
        raise PromptError(msg)
    return SUFFIXES[suffix]


def neighbours(path: Path) -> str:
    """Return a hint at files of prompts beside a path that are called much the same."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    return near(path.name, [child.name for child in beside if child.suffix.lower() in SUFFIXES])


def csv_options(path: Path) -> dict[str, Any]:
    """Keep every cell the text it is: no number, no missing value, no shifted column."""
    from datasets import Features, Value

    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        msg = f"{path} has several columns named {', '.join(map(repr, repeated))}."
        raise PromptError(msg)
    return {
        "features": Features({name: Value("string") for name in header}),
        "keep_default_na": False,
        "index_col": False,
        "encoding": "utf-8-sig",
    }
