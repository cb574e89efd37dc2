"""Prompts from files, read by `datasets`."""

import csv
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from hf_dumper.core.names import near
from hf_dumper.errors import PromptError
from hf_dumper.prompts.prompt import Messages, Prompt

SUFFIXES: Final = {
    ".txt": "text",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
"""Suffix of a file of prompts -> loader of `datasets`."""

_RAGGED: Final = "Length of header or names does not match length of data"
"""How pandas begins to tell that it drops the cells beyond the header's."""

Row = Mapping[str, Any]


def load_prompts(
    source: str | PathLike[str], *, column: str | None = None, chat: bool = False
) -> list[Prompt]:
    """Read a file of prompts: a line each of .txt, a row each of .json, .jsonl, .csv, .parquet.

    Args:
        source: The file; its suffix says what it is.
        column: Column of the prompts. None takes "prompt", else "text", else, with `chat`,
            "messages", else the only column besides "id".
        chat: Cells may be conversations: lists of messages with a role and a content.

    A column "id" names the prompts. Blank lines of a .txt are left out. Nothing is left behind in
    the cache of `datasets`.

    Raises:
        PromptError: a file that is missing, empty or broken, an unknown column, or a cell that is
            no prompt.
    """
    path = Path(source)
    columns, rows = read_rows(path)
    if path.suffix.lower() == ".txt":
        rows = [row for row in rows if row["text"].strip()]
    if not rows:
        msg = f"{path} holds no prompts."
        raise PromptError(msg)
    chosen = _choose(path, columns, column, chat=chat)
    return [_prompt(path, number, row, chosen, chat=chat) for number, row in enumerate(rows)]


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Return the names of the columns and the rows of a file; cells of .csv are texts, unchanged.

    Raises:
        PromptError: a file that is missing, broken, or of an unknown kind.
    """
    return _read(path, _loader(path))


def _loader(path: Path) -> str:
    if path.is_dir():
        msg = f"{path} is a folder. Name the file of prompts in it."
        raise PromptError(msg)
    if not path.exists():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        names = [child.name for child in beside if child.suffix.lower() in SUFFIXES]
        msg = f"There is no file {str(path)!r}.{near(path.name, names)}"
        raise PromptError(msg)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        msg = f"Cannot tell from the suffix what {path} holds. Known: {', '.join(SUFFIXES)}."
        raise PromptError(msg)
    return SUFFIXES[suffix]


def _read(path: Path, loader: str) -> tuple[list[str], list[Row]]:
    """Return the column names and the rows of a file."""
    try:
        if not path.stat().st_size:
            return [], []
        options = _csv_options(path) if loader == "csv" else {}
        # Reading takes a copy in Arrow's format, which must not outlive this call, nor be taken for
        # another file of that name later.
        with TemporaryDirectory(prefix="hf_dumper_prompts_") as cache, _quiet():
            from datasets import load_dataset

            table = load_dataset(
                loader,
                data_files=escape(str(path.absolute())),
                split="train",
                cache_dir=cache,
                keep_in_memory=True,
                **options,
            )
            return list(table.column_names), list(table)
    except PromptError:
        raise
    except Exception as error:
        if "corresponds to no data" in str(error) or "SchemaInference" in repr(error.__cause__):
            return [], []  # a list of nothing, or blank lines only
        msg = f"Cannot read {path}: {_reason(error)}"
        raise PromptError(msg) from error


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong; `datasets` hides it behind a message of its own."""
    cause = error.__cause__ if "An error occurred while generating" in str(error) else None
    told: BaseException = cause or error
    text = (str(told) or repr(told)).strip().splitlines()[0]
    if text.startswith(_RAGGED):
        return "a row has more cells than the header. Put quotes around cells that hold commas."
    return text


def _csv_options(path: Path) -> dict[str, Any]:
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep `datasets` from telling about its work; a loss of data is an error."""
    from datasets.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    level, silent = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    if not silent:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=_RAGGED)
            yield
    finally:
        logging.set_verbosity(level)
        if not silent:
            enable_progress_bars()


def _choose(path: Path, columns: Sequence[str], wanted: str | None, *, chat: bool) -> str:
    if wanted is not None:
        if wanted in columns:
            return wanted
        msg = f"{path} has no column {wanted!r}.{near(wanted, columns) or _listed(columns)}"
        raise PromptError(msg)
    for name in ("prompt", "text", "messages"):
        if name in columns and (chat or name != "messages"):
            return name
    others = [name for name in columns if name != "id"] or list(columns)
    if len(others) == 1:
        return others[0]
    msg = f"Which column of {path} are the prompts? Name one (--column).{_listed(columns)}"
    raise PromptError(msg)


def _listed(columns: Sequence[str]) -> str:
    return f" Columns: {', '.join(map(repr, columns))}."


def _prompt(path: Path, number: int, row: Row, column: str, *, chat: bool) -> Prompt:
    cell, given = row[column], row.get("id")
    name = str(number) if given is None or column == "id" else str(given)
    if isinstance(cell, str) and cell.strip():
        return Prompt(name, text=cell)
    messages = _messages(cell)
    if messages and chat:
        return Prompt(name, messages=messages)
    msg = f"Row {number} of {path} holds {_kind(cell)} in column {column!r}; "
    if messages:
        msg += "conversations need chat=True (--chat)."
    else:
        msg += "a prompt is a text" + (" or a list of messages." if chat else ".")
    raise PromptError(msg)


def _messages(cell: object) -> Messages | None:
    """Return a cell as messages, without the empty fields that a table gives them; None if not."""
    if not isinstance(cell, list) or not cell:
        return None
    if not all(isinstance(item, dict) and isinstance(item.get("role"), str) for item in cell):
        return None
    return [{key: value for key, value in item.items() if value is not None} for item in cell]


def _kind(cell: object) -> str:
    if cell is None:
        return "nothing"
    if isinstance(cell, str):
        return "a blank text"
    if _messages(cell):
        return "a conversation"
    return f"{type(cell).__name__} {str(cell)[:40]!r}"
