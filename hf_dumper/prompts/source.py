"""The prompts of a source, row by row or all at once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

from hf_dumper.errors import PromptError
from hf_dumper.prompts.cells import Maker, from_column, from_template
from hf_dumper.prompts.prompt import Prompt
from hf_dumper.prompts.table import Selection, Table, nothing, open_table


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One row of a source: its number in its split, from 0, and its prompt.

    A row that holds no prompt has the `error` that says why instead; one of the two is None.
    """

    number: int
    prompt: Prompt | None
    error: PromptError | None = None

    def taken(self) -> Prompt:
        """Return the prompt.

        Raises:
            PromptError: the row holds none.
        """
        if self.prompt is None:
            raise self.error or PromptError(f"Row {self.number} holds no prompt.")
        return self.prompt


class PromptRows:
    """The rows of a source; each time they are iterated over, they are read anew.

    Attributes:
        name: What to call the source in messages.
        facts: What the rows are, ready for JSON: name, subset, revision (a commit; these two of a
            data set of the hub), split, column or template, chat, and under "chosen" which rows.
    """

    def __init__(self, table: Table, make: Maker, facts: Mapping[str, Any]) -> None:
        """Make prompts of the rows of a table."""
        self.name = table.name
        self.facts = facts
        self._table = table
        self._make = make

    @property
    def count(self) -> int | None:
        """How many rows there are, None for a stream."""
        return self._table.count

    def __iter__(self) -> Iterator[PromptRow]:
        """Yield every row, also those that hold no prompt.

        Raises:
            PromptError: the source cannot be read any further.
        """
        for number, row in self._table:
            try:
                yield PromptRow(number, self._make(number, row))
            except PromptError as error:
                yield PromptRow(number, None, error)


def open_prompts(
    source: str | PathLike[str],
    selection: Selection | None = None,
    *,
    column: str | None = None,
    template: str | None = None,
    chat: bool = False,
) -> PromptRows:
    """Open whatever `datasets` reads: a file, a folder, or a data set of the hub.

    Args:
        source: A .txt (a prompt on each line), .json, .jsonl, .csv or .parquet file; a folder that
            `save_to_disk` left, or one with files of data; else a name on the hub.
        selection: Which rows; None takes those of the only split.
        column: Column of the prompts. None takes "prompt", else "text", else, with `chat`,
            "messages", else the only column besides "id".
        template: A text with columns in braces, such as "Q: {question}"; instead of `column`.
        chat: Cells may be conversations: lists of messages with a role and a content.

    A column "id" names the prompts. Blank lines of a .txt are left out, and so are their numbers.

    Raises:
        PromptError: a source that is missing, empty or broken, or an unknown split or column.
    """
    if column is not None and template is not None:
        msg = "Give either a column or a template, not both."
        raise PromptError(msg)
    name, chosen = fspath(source), selection or Selection()
    table = open_table(name, chosen)
    if template is not None:
        used, make = from_template(table.name, table.columns, template)
    else:
        used, make = from_column(table.name, table.columns, column, chat=chat)
    table.keep(used, blank=used[0] if table.is_text else None)
    if table.count == 0:
        raise nothing(table.name)
    by = {"column": used[0] if template is None else None, "template": template, "chat": chat}
    return PromptRows(table, make, _facts(name, table, chosen) | by)


def _facts(name: str, table: Table, chosen: Selection) -> dict[str, Any]:
    rows = {
        "split": chosen.split,
        "streaming": chosen.streaming,
        "shuffle": chosen.shuffle,
        "limit": chosen.limit,
    }
    return {"name": name, **table.origin, "split": table.split, "chosen": rows}


def load_prompts(
    source: str | PathLike[str],
    selection: Selection | None = None,
    *,
    column: str | None = None,
    template: str | None = None,
    chat: bool = False,
) -> list[Prompt]:
    """Read every prompt of a source; the arguments are those of `open_prompts`.

    Raises:
        PromptError: the same, or a row that holds no prompt.
    """
    rows = open_prompts(source, selection, column=column, template=template, chat=chat)
    prompts = [row.taken() for row in rows]
    if not prompts:
        raise nothing(rows.name)
    return prompts
