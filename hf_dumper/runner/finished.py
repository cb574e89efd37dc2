"""Which rows of a data set a dump holds already."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any, Final, NamedTuple

from hf_dumper.core.digests import json_digest
from hf_dumper.errors import DumpFormatError, DumpIdentityError
from hf_dumper.store import MsitReader, NativeReader, open_dump
from hf_dumper.store.run_sink import writing


class _Made(NamedTuple):
    """Of what a row's run was made; digests, since there may be many rows."""

    run: int
    prompt: str
    generate: str


_OF_ALL: Final = ("revision", "subset", "split", "column", "template", "chat", "generate")
"""Facts of a source that the runs of a dump share: the number alone says which row it is."""


class FinishedRows:
    """The rows whose runs are complete in the dump at `path`, which the caller writes.

    Attributes:
        replaced: How many runs that were not complete were removed.
    """

    def __init__(self, path: Path) -> None:
        """Read the facts of every run."""
        self.replaced = 0
        self._path = path
        self._taken: set[int] = set()
        self._made: dict[int, _Made] = {}
        self._sources: dict[str, tuple[int, Mapping[str, Any]]] = {}
        if NativeReader.detect(path) or MsitReader.detect(path):
            self._read()
        self._before = frozenset(self._taken)

    @property
    def sources(self) -> list[tuple[int, Mapping[str, Any]]]:
        """What the complete runs are of, each kind once, with the first run of the kind."""
        return list(self._sources.values())

    def holds(self, row: int, ids: Sequence[int], generate: Mapping[str, Any]) -> bool:
        """Tell whether the run of a row is complete.

        `ids` are those of its prompt, `generate` the options it is generated with.

        Raises:
            DumpIdentityError: it is, but was made of another prompt, or with other options.
        """
        made = self._made.get(row)
        if made is None:
            return False
        if made.prompt != json_digest(list(ids)):
            raise self._not_this(made.run, f"another prompt than row {row} is now")
        if made.generate != json_digest(plain(generate)):
            raise self._not_this(made.run, "other options of generation")
        return True

    def check_source(self, source: Mapping[str, Any]) -> None:
        """Make sure that further rows are of the data set that the complete runs are of.

        A file may have grown or be elsewhere, other rows may be chosen, in another order.

        Raises:
            DumpIdentityError: they are of another split, revision, template or such.
        """
        for run, found in self.sources:
            if Path(found["name"]).name != Path(source["name"]).name:
                raise self._not_this(run, f"{found['name']!r}, not of {source['name']!r}")
            for name in _OF_ALL:
                before, now = found.get(name), source.get(name)
                if name in found and name in source and before != now:
                    raise self._not_this(run, f"rows with {name} {before!r}, not {now!r}")

    def free(self, number: int) -> None:
        """Make sure that a run can have this number: remove one that is not complete.

        Raises:
            DumpIdentityError: the number belongs to a complete run, which is of something else.
            DumpWriteError: the run cannot be removed.
        """
        if number in self._taken:
            with open_dump(self._path) as reader:
                facts = reader.facts_folder(number)  # type: ignore[attr-defined]
                if _facts(reader, number).get("complete") is True:
                    raise self._not_this(number, f"something else than row {number}")
                folder = reader.folder(number) if isinstance(reader, MsitReader) else facts
            with writing(self._path):
                rmtree(folder)
            self.replaced += number in self._before
        self._taken.add(number)

    def _read(self) -> None:
        with open_dump(self._path) as reader:
            self._taken.update(reader.runs())
            for run in reader.runs():
                facts = _facts(reader, run)
                made = dict(_rows_of(run, facts))
                self._made.update(made)
                if made:
                    source = {**facts["prompt"]["source"], "rows": None, "chosen": None}
                    self._sources.setdefault(json_digest(source), (run, source))

    def _not_this(self, run: int, of_what: str) -> DumpIdentityError:
        return DumpIdentityError(
            f"Run {run} of {str(self._path)!r} was made of {of_what}. Choose another dump_path, or "
            "overwrite=True to remove that dump."
        )


def recorded_revision(path: Path, name: str) -> str | None:
    """Return the commit of the hub's data set that the complete runs of a dump are of.

    None where there is no dump, or none of its runs is of a data set of that name on the hub.
    """
    for _, source in FinishedRows(path).sources:
        if source["name"] == name and source.get("revision") is not None:
            return str(source["revision"])
    return None


def plain(options: Mapping[str, Any]) -> Any:
    """Return options as a file has them."""
    return json.loads(json.dumps(dict(options), default=str))


def _facts(reader: Any, run: int) -> Mapping[str, Any]:
    try:
        facts: Mapping[str, Any] = reader.run_info(run)
    except DumpFormatError:  # what cannot be read is not complete
        return {}
    return facts


def _rows_of(run: int, facts: Mapping[str, Any]) -> Iterator[tuple[int, _Made]]:
    prompt = facts.get("prompt") or {}
    source = prompt.get("source") or {}
    if facts.get("complete") is not True or not source.get("rows"):
        return
    generate, table = json_digest(source["generate"]), prompt["input_ids"]
    masks = prompt["attention_mask"] or [[1] * len(ids) for ids in table]
    for row, ids, mask in zip(source["rows"], table, masks, strict=True):
        kept = [token for token, wanted in zip(ids, mask, strict=True) if wanted]
        yield row, _Made(run, json_digest(kept), generate)
