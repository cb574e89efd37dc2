"""The file that an evaluation leaves: per prompt the answer, and whether it was right."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

from hf_dumper.core.names import near
from hf_dumper.errors import PromptError
from hf_dumper.prompts.prompt import Prompt
from hf_dumper.prompts.table import Selection, open_table

_WORDS: Final = {
    **dict.fromkeys(("true", "1", "yes", "pass", "passed"), True),
    **dict.fromkeys(("false", "0", "no", "fail", "failed"), False),
}
"""What a cell of `passed` may be, in any case."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns."""

    id: str = "id"
    prompt: str = "prompt"
    answer: str = "answer"
    passed: str = "passed"


@dataclass(frozen=True, slots=True)
class Result:
    """One row. What the file has no column for, or was not asked for, is None."""

    id: str
    prompt: Prompt | None = None
    answer: str | None = None
    passed: bool | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """The rows of a file by id, in its order; ids that it has more than once are left out."""

    path: Path
    rows: Mapping[str, Result]
    doubled: tuple[str, ...] = ()


def read_results(
    source: str | PathLike[str],
    columns: Columns | None = None,
    *,
    needed: Sequence[str] = ("prompt", "passed"),
) -> Results:
    """Read the results of an evaluation from .csv, .jsonl, .json or .parquet.

    Ids are compared by value, so that 7 of JSON is 7 of CSV. `passed` is true, false, 1, 0, yes,
    no, pass, passed, fail or failed, in any case. A prompt is a text or a conversation.

    Args:
        source: The file; its suffix says what it is.
        columns: Names of the columns; None means `Columns()`.
        needed: Fields besides the id that every row must have; the answer is read where it is.

    Raises:
        PromptError: the file cannot be read, lacks a column or a cell, or has one that cannot be
            meant; the message names the row, counted from 0.
    """
    path, names = Path(source), columns or Columns()
    table = open_table(str(path), Selection())
    there, rows = table.columns, [row for _, row in table]
    if not rows:
        msg = f"{path} holds no rows."
        raise PromptError(msg)
    for field in ("id", *needed):
        name = getattr(names, field)
        if name not in there:
            listed = near(name, there) or f" Columns: {', '.join(map(repr, there))}."
            msg = f"{path} has no column {name!r} for the {field}.{listed}"
            raise PromptError(msg)
    found = [_result(path, number, row, names, needed) for number, row in enumerate(rows)]
    counts = Counter(result.id for result in found)
    doubled = tuple(name for name, count in counts.items() if count > 1)
    return Results(path, {r.id: r for r in found if counts[r.id] == 1}, doubled)


def _result(
    path: Path, number: int, row: Mapping[str, Any], names: Columns, needed: Sequence[str]
) -> Result:
    where = f"Row {number} of {path}"
    answer = row.get(names.answer)
    if not isinstance(answer, str) and (answer is not None or "answer" in needed):
        raise _wrong(where, names.answer, answer, "an answer is a text")
    return Result(
        _id(where, names.id, row[names.id]),
        _prompt(where, names, row) if "prompt" in needed else None,
        answer,
        _passed(where, names.passed, row[names.passed]) if "passed" in needed else None,
    )


def _id(where: str, name: str, cell: object) -> str:
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # an integer of a column that also has fractions
    if isinstance(cell, bool) or not isinstance(cell, str | int | float) or cell == "":
        raise _wrong(where, name, cell, "an id is a text or a number")
    return str(cell)


def _passed(where: str, name: str, cell: object) -> bool:
    is_number = isinstance(cell, float) and cell.is_integer()
    text = str(int(cell) if is_number else cell)  # type: ignore[call-overload]
    if text.strip().lower() not in _WORDS:
        raise _wrong(where, name, cell, f"it must be one of {', '.join(_WORDS)}")
    return _WORDS[text.strip().lower()]


def _prompt(where: str, names: Columns, row: Mapping[str, Any]) -> Prompt:
    cell = row[names.prompt]
    if isinstance(cell, str) and cell.strip():
        return Prompt(str(row[names.id]), text=cell)
    if isinstance(cell, list) and cell and all(isinstance(m, dict) and "role" in m for m in cell):
        given = [{key: value for key, value in m.items() if value is not None} for m in cell]
        return Prompt(str(row[names.id]), messages=given)
    raise _wrong(where, names.prompt, cell, "a prompt is a text or a list of messages")


def _wrong(where: str, column: str, cell: object, must: str) -> PromptError:
    return PromptError(f"{where} has {str(cell)[:40]!r} in column {column!r}; {must}.")
