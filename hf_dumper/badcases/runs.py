"""Which run of a dump is that of which bad case."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_dumper.badcases.cases import BadCase
from hf_dumper.core.protocols import DumpReader
from hf_dumper.errors import PromptError
from hf_dumper.prompts.encode import encode
from hf_dumper.store.kept import tokenizer_folder


@dataclass(frozen=True, slots=True)
class Place:
    """A row of a run."""

    run: int
    row: int


class Chosen:
    """A reader that shows only some runs of another one, which keeps being the owner."""

    def __init__(self, reader: DumpReader, runs: Sequence[int]) -> None:
        """Show these runs."""
        self._reader, self._runs = reader, runs

    def runs(self) -> Sequence[int]:
        """Return the runs that are shown."""
        return self._runs

    def __getattr__(self, name: str) -> Any:
        """Return whatever else the reader has."""
        return getattr(self._reader, name)


def kept_tokenizer(*readers: DumpReader) -> Any:
    """Return the tokenizer that the first of the dumps keeps which has one.

    Raises:
        PromptError: none does.
    """
    from transformers import AutoTokenizer

    for reader in readers:
        folder = tokenizer_folder(reader.path)
        if folder is not None:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    paths = " nor ".join(f"'{reader.path}'" for reader in readers)
    msg = f"Neither {paths} keeps a tokenizer, so that prompts cannot be found in them."
    raise PromptError(msg)


def find_runs(
    reader: DumpReader, cases: Iterable[BadCase], tokenizer: Any, *, chat: bool
) -> dict[str, Place | str]:
    """Return the place of each case by the token ids of its prompt, or the reason why not."""
    places = defaultdict(list)
    for run in reader.runs():
        info = reader.run_info(run)
        prompts = list(_prompts(info.get("prompt") or {}))
        if len(prompts) == len(info.get("generated_ids") or ()):
            for row, ids in enumerate(prompts):
                places[ids].append(Place(run, row))
    return {case.id: _only(reader, places[_ids(tokenizer, case, chat)]) for case in cases}


def new_text(reader: DumpReader, place: Place, tokenizer: Any) -> str:
    """Return what was generated in a row, without special tokens."""
    ids = reader.run_info(place.run)["generated_ids"][place.row]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _only(reader: DumpReader, found: Sequence[Place]) -> Place | str:
    if len(found) == 1:
        return found[0]
    many = f"{len(found)} rows of" if found else "no run that generated in"
    return f"{many} '{reader.path}' with its prompt"


def _ids(tokenizer: Any, case: BadCase, chat: bool) -> tuple[int, ...]:
    return tuple(encode(tokenizer, case.prompt, chat)["input_ids"][0].tolist())


def _prompts(facts: Mapping[str, Any]) -> Iterable[tuple[int, ...]]:
    """Yield the ids of each prompt without its padding."""
    rows = facts.get("input_ids") or ()
    masks = facts.get("attention_mask") or [[1] * len(row) for row in rows]
    for row, mask in zip(rows, masks, strict=True):
        yield tuple(n for n, kept in zip(row, mask, strict=True) if kept)
