"""Rows of any source that `datasets` reads, each with its number."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from itertools import chain, islice
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, Final, TypeAlias
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from hf_dumper.core.names import near
from hf_dumper.errors import PromptError
from hf_dumper.prompts.files import csv_options, loader_of, looks_local
from hf_dumper.prompts.hub import load_hub
from hf_dumper.prompts.quiet import holds_nothing, reading

BUFFER: Final = 1000
"""Rows among which a streamed source is shuffled."""

_SLICE: Final = re.compile(r"([^\[\]+]+)(?:\[(\d*):(\d*)\])?")

Row: TypeAlias = Mapping[str, Any]
Numbers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of a source are taken.

    Attributes:
        subset: Configuration of a data set on the hub, such as "main". None: its only one.
        revision: Branch, tag or commit of a data set on the hub. None: its main branch.
        split: A split, or a slice of one as `datasets` writes it, such as "train[1:3]" or
            "test[:10%]". None: the only split there is.
        streaming: Read row by row, nothing ahead; the number of rows is not known then.
        shuffle: Seed of the order, None for that of the source. A stream is shuffled among
            `BUFFER` rows at a time.
        limit: How many rows at most, None for all.
    """

    subset: str | None = None
    split: str | None = None
    streaming: bool = False
    shuffle: int | None = None
    limit: int | None = None
    revision: str | None = None


class Table:
    """The chosen rows of one source; each time they are iterated over, they are read anew.

    A row keeps the number that it has in its split, counted from 0, whatever is chosen.
    `is_text` says that each row is a line of a text.

    Attributes:
        name: What to call the source in messages.
        columns: Names of the columns.
        split: Name of the split.
        origin: Of a data set of the hub: its "subset", and as "revision" its commit.
    """

    def __init__(self, name: str, splits: Mapping[str, Any], chosen: Selection) -> None:
        """Choose among the splits, which are data sets of one kind: in full, or streams."""
        self.name = name
        self.is_text = False
        self.origin: Mapping[str, str] = {}
        self._chosen = chosen
        self._blank: str | None = None
        self._numbers: Numbers | None = None
        if chosen.streaming:
            self.split, self._data, self._start = _sliced_stream(name, splits, chosen.split)
        else:
            self.split, self._numbers = _sliced(name, splits, chosen.split)
            self._data = splits[self.split]
        self.columns = self._columns()

    @property
    def count(self) -> int | None:
        """How many rows there are, None for a stream."""
        if self._numbers is None:
            return None
        limit = self._chosen.limit
        return len(self._numbers) if limit is None else min(limit, len(self._numbers))

    def keep(self, columns: Sequence[str], *, blank: str | None = None) -> None:
        """Read these columns only, and leave out the rows in which column `blank` is blank."""
        self._data = self._data.select_columns(list(columns))
        self._blank = blank
        if self._numbers is not None and blank is not None:
            texts = self._data[blank]
            self._numbers = np.array([n for n in self._numbers if texts[int(n)].strip()], np.int64)

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        """Yield the number and the cells of each row.

        Raises:
            PromptError: the source cannot be read any further.
        """
        rows = self._stream() if self._numbers is None else self._in_full(self._numbers)
        yield from islice(rows, self._chosen.limit)

    def _columns(self) -> list[str]:
        with reading(self.name):
            names = self._data.column_names
            return list(names if names is not None else next(iter(self._data), {}))

    def _in_full(self, numbers: Numbers) -> Iterator[tuple[int, Row]]:
        if self._chosen.shuffle is not None:
            numbers = np.random.default_rng(self._chosen.shuffle).permutation(numbers)
        for number in map(int, numbers):
            with reading(self.name):
                row = self._data[number]
            yield number, row

    def _stream(self) -> Iterator[tuple[int, Row]]:
        rows = enumerate(self._read(), self._start)
        kept = ((n, row) for n, row in rows if self._blank is None or row[self._blank].strip())
        seed = self._chosen.shuffle
        return kept if seed is None else _shuffled(kept, random.Random(seed))

    def _read(self) -> Iterator[Row]:
        rows = iter(self._data)
        while True:
            with reading(self.name):
                row = next(rows, None)
            if row is None:
                return
            yield row


def open_table(source: str, chosen: Selection) -> Table:
    """Open a file, a folder or a data set of the hub.

    A folder is what `save_to_disk` left, or holds files of data. What is read from a local file is
    not kept in the cache of `datasets`: a changed file is read anew.

    Raises:
        PromptError: there is nothing, it cannot be read, or the selection cannot be meant.
    """
    if not looks_local(source):
        return _open_hub(source, chosen)
    path = Path(source).expanduser()
    for what, value in (("subset", chosen.subset), ("revision", chosen.revision)):
        if value is not None:
            msg = f"{path} is here, not on the hub: it has no {what} {value!r}."
            raise PromptError(msg)
    if not path.is_dir():
        return _open_file(path, chosen)
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return _open_saved(path, chosen)
    return _open_folder(path, chosen)


def _open_file(path: Path, chosen: Selection) -> Table:
    loader = loader_of(path)
    with reading(str(path)):
        if not path.stat().st_size:
            raise nothing(str(path))
        options = csv_options(path) if loader == "csv" else {}
        files = escape(str(path.absolute()))
        table = _loaded(str(path), chosen, loader, data_files=files, **options)
        table.is_text = loader == "text"
        return table


def _open_folder(path: Path, chosen: Selection) -> Table:
    if not any(child.is_file() for child in path.rglob("*")):
        msg = f"{path} is a folder without files. Name a file of prompts, or a folder of data."
        raise PromptError(msg)
    return _loaded(str(path), chosen, str(path.absolute()))


def _open_saved(path: Path, chosen: Selection) -> Table:
    from datasets import Dataset, load_from_disk

    with reading(str(path)):
        found = load_from_disk(str(path))
        splits = {str(found.split or "train"): found} if isinstance(found, Dataset) else dict(found)
        if chosen.streaming:
            splits = {name: part.to_iterable_dataset() for name, part in splits.items()}
    return Table(str(path), splits, chosen)


def _open_hub(source: str, chosen: Selection) -> Table:
    splits, origin = load_hub(source, chosen.subset, chosen.revision, streaming=chosen.streaming)
    table = Table(repr(source), splits, chosen)
    table.origin = origin
    return table


def _loaded(name: str, chosen: Selection, *what: str, **options: Any) -> Table:
    """Load with a copy in Arrow's format that does not outlive the table."""
    from datasets import load_dataset

    cache = mkdtemp(prefix="hf_dumper_prompts_")
    try:
        with reading(name):
            splits = load_dataset(*what, cache_dir=cache, streaming=chosen.streaming, **options)
            table = Table(name, splits, chosen)
    except BaseException as error:
        rmtree(cache, ignore_errors=True)
        if error.__cause__ is not None and holds_nothing(error.__cause__):
            raise nothing(name) from error
        raise
    finalize(table, rmtree, cache, ignore_errors=True)
    return table


def nothing(name: str) -> PromptError:
    """Return the error about a source without rows."""
    return PromptError(f"{name} holds no rows.")


def _sliced(name: str, splits: Mapping[str, Any], wanted: str | None) -> tuple[str, Numbers]:
    """Return the name of a split, and the numbers of the rows that are asked for."""
    from datasets import ReadInstruction

    spec = wanted or _only(name, splits)
    try:
        sizes = {split: len(data) for split, data in splits.items()}
        slices = ReadInstruction.from_spec(spec).to_absolute(sizes)
    except (AssertionError, ValueError) as error:
        raise _no_split(name, splits, spec, str(error)) from error
    names = {part.splitname for part in slices}
    if len(names) > 1:
        raise _no_split(name, splits, spec, "rows of several splits share their numbers")
    numbers = np.array([*chain(*(range(part.from_, part.to) for part in slices))], np.int64)
    if len(np.unique(numbers)) < len(numbers):
        raise _no_split(name, splits, spec, "it names a row twice")
    return names.pop(), numbers


def _sliced_stream(
    name: str, splits: Mapping[str, Any], wanted: str | None
) -> tuple[str, Any, int]:
    """Return the name of a split, a stream of its rows, and the number of its first row."""
    spec = wanted or _only(name, splits)
    match = _SLICE.fullmatch(spec)
    if match is None:
        why = "a stream takes a split, or one slice by numbers such as 'train[10:20]'"
        raise _no_split(name, splits, spec, why)
    if match[1] not in splits:
        raise _no_split(name, splits, match[1], "there is none of that name")
    start, data = int(match[2] or 0), splits[match[1]]
    data = data.skip(start) if start else data
    data = data.take(max(0, int(match[3]) - start)) if match[3] else data
    return match[1], data, start


def _only(name: str, splits: Mapping[str, Any]) -> str:
    if len(splits) == 1:
        return next(iter(splits))
    msg = f"Which split of {name}? Name one (--split). {_listed(splits)}"
    raise PromptError(msg)


def _no_split(name: str, splits: Mapping[str, Any], spec: str, why: str) -> PromptError:
    hint = near(spec.partition("[")[0], splits) if len(splits) > 1 else ""
    reason = " ".join(why.split()).rstrip(".")
    return PromptError(f"Cannot take split {spec!r} of {name}: {reason}.{hint} {_listed(splits)}")


def _listed(splits: Mapping[str, Any]) -> str:
    return f"Splits: {', '.join(map(repr, splits))}."


def _shuffled(rows: Iterator[tuple[int, Row]], draw: random.Random) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a stream in another order.

    `IterableDataset.shuffle` would shuffle whole files first, and the rows' numbers with them.
    """
    kept = list(islice(rows, BUFFER))
    for row in rows:
        place = draw.randrange(len(kept))
        yield kept[place]
        kept[place] = row
    draw.shuffle(kept)
    yield from kept
