"""From the cells of a row to a prompt: one column, or a template over several."""

from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Any, TypeAlias

from hf_dumper.core.names import near
from hf_dumper.errors import PromptError
from hf_dumper.prompts.prompt import Messages, Prompt

Maker: TypeAlias = Callable[[int, Mapping[str, Any]], Prompt]
"""Makes a prompt of the number and the cells of a row, or raises a PromptError."""

ID = "id"
"""The column that names prompts."""


def from_column(
    source: str, columns: Sequence[str], wanted: str | None, *, chat: bool
) -> tuple[list[str], Maker]:
    """Return the columns that are needed, the prompt's first, and what makes prompts of them.

    Raises:
        PromptError: there is no such column, or it must be named.
    """
    column = _choose(source, columns, wanted, chat=chat)

    def make(number: int, row: Mapping[str, Any]) -> Prompt:
        cell, name = row.get(column), _name(number, row, column)
        if isinstance(cell, str) and cell.strip():
            return Prompt(name, text=cell)
        messages = _messages(cell)
        if messages and chat:
            return Prompt(name, messages=messages)
        raise _no_prompt(number, source, column, cell, chat=chat)

    return _with_id([column], columns), make


def from_template(source: str, columns: Sequence[str], template: str) -> tuple[list[str], Maker]:
    """Do the same for a text with columns in braces, as `str.format` takes it.

    Raises:
        PromptError: the braces do not match, or name no column.
    """
    used = _fields(source, columns, template)

    def make(number: int, row: Mapping[str, Any]) -> Prompt:
        for name in used:
            if row.get(name) is None:
                msg = f"Row {number} of {source} holds nothing in column {name!r}."
                raise PromptError(msg)
        try:
            text = _Cells().vformat(template, (), row)
        except (LookupError, TypeError, ValueError) as error:
            msg = f"Row {number} of {source} does not fit the template: {error or repr(error)}"
            raise PromptError(msg) from error
        if not text.strip():
            msg = f"Row {number} of {source} makes a blank text of the template."
            raise PromptError(msg)
        return Prompt(_name(number, row), text=text)

    return _with_id(used, columns), make


class _Cells(Formatter):
    """Formats values, not what Python shows of a list."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if not isinstance(value, str | int | float | bool):
            msg = f"{_kind(value)} is no text; pick a part of it, as in {{column[0]}}."
            raise TypeError(msg)
        return str(format(value, format_spec))


def _fields(source: str, columns: Sequence[str], template: str) -> list[str]:
    """Return the columns that a template uses, in order."""
    try:
        found = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        msg = f"The template {template!r} cannot be read: {error}. Write {{{{ for a brace itself."
        raise PromptError(msg) from error
    names = list(dict.fromkeys(field.partition("[")[0] for field in found))
    if not names:
        msg = f"The template {template!r} names no column, such as {{{columns[0]}}}."
        raise PromptError(msg)
    for name in names:
        if name not in columns:
            raise _no_column(source, name, columns)
    return names


def _choose(source: str, columns: Sequence[str], wanted: str | None, *, chat: bool) -> str:
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise _no_column(source, wanted, columns)
    for name in ("prompt", "text", "messages"):
        if name in columns and (chat or name != "messages"):
            return name
    others = [name for name in columns if name != ID] or list(columns)
    if len(others) == 1:
        return others[0]
    msg = f"Which column of {source} are the prompts? Name one (--column).{_listed(columns)}"
    raise PromptError(msg)


def _no_column(source: str, name: str, columns: Sequence[str]) -> PromptError:
    hint = near(name, columns) or _listed(columns)
    return PromptError(f"{source} has no column {name!r}.{hint}")


def _listed(columns: Sequence[str]) -> str:
    return f" Columns: {', '.join(map(repr, columns))}."


def _with_id(used: list[str], columns: Sequence[str]) -> list[str]:
    return [*used, ID] if ID in columns and ID not in used else used


def _name(number: int, row: Mapping[str, Any], column: str | None = None) -> str:
    given = row.get(ID)
    return str(number) if given is None or column == ID else str(given)


def _no_prompt(number: int, source: str, column: str, cell: object, *, chat: bool) -> PromptError:
    msg = f"Row {number} of {source} holds {_kind(cell)} in column {column!r}; "
    if _messages(cell):
        msg += "conversations need chat=True (--chat)."
    else:
        msg += "a prompt is a text" + (" or a list of messages." if chat else ".")
    return PromptError(msg)


def _messages(cell: object) -> Messages | None:
    """Return a cell as messages, without the empty fields that a table gives them; None if not."""
    if not isinstance(cell, list) or not cell:
        return None
    if not all(isinstance(item, dict) and isinstance(item.get("role"), str) for item in cell):
        return None
    return [_filled(item) for item in cell]


def _filled(value: Any) -> Any:
    """Leave out what a table fills in for the fields that only other rows have, at any depth."""
    if isinstance(value, dict):
        return {key: _filled(item) for key, item in value.items() if item is not None}
    return [_filled(item) for item in value] if isinstance(value, list) else value


def _kind(cell: object) -> str:
    if cell is None:
        return "nothing"
    if isinstance(cell, str):
        return "a blank text"
    if _messages(cell):
        return "a conversation"
    return f"{type(cell).__name__} {str(cell)[:40]!r}"
