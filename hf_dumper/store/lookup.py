"""Finds records by name in the index of one run, in microseconds."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hf_dumper.core.names import near
from hf_dumper.core.types import STORED, TensorKey
from hf_dumper.errors import DumpFormatError, KeyNotFoundError

_NAMES: Final = ("module", "slot", "op")
_NUMBERS: Final = ("rank", "token", "call", "forward")

TEXTS: Final = (*_NAMES, "phase", "axes", "dtype", "shard", "status", "reason")
"""The columns with text, which a Lookup needs as dictionaries."""

COLUMNS: Final = (*TEXTS, *_NUMBERS, "shape", "offset", "nbytes")
"""The columns of the index that a Lookup needs."""


class Row(NamedTuple):
    """What the index says about the bytes of one record; None where it has none."""

    rank: int
    forward: int
    axes: str
    dtype: str
    shape: Sequence[int]
    shard: str | None
    offset: int
    nbytes: int
    status: str
    reason: str
    phase: str = ""


class Lookup:
    """The index of one run, arranged to be asked for single records.

    Only the columns that are compared become NumPy arrays, text by its codes in the dictionary that
    the index has already; a row becomes Python objects when it is found. Rows are grouped by
    module, so that a question looks at the rows of one module only.
    """

    def __init__(self, table: pa.Table, where: str) -> None:
        """Arrange a table of COLUMNS; `where` names run and dump in messages.

        Raises:
            DumpFormatError: a column that is compared has no values, or one value twice.
        """
        self._table = table.combine_chunks()
        self._where = where
        self._shown = [self._table.column(name) for name in Row._fields]
        self._values = {name: self._numbers(name) for name in _NUMBERS}
        self._codes: dict[str, Mapping[str, int]] = {}
        for name in _NAMES:
            self._values[name], self._codes[name] = self._encoded(name)
        modules = self._values["module"]
        self._by_module = np.argsort(modules, kind="stable")
        self._starts = np.searchsorted(
            modules[self._by_module], np.arange(len(self._codes["module"]) + 1)
        )

    def __len__(self) -> int:
        """Return the number of records."""
        return int(self._table.num_rows)

    def __contains__(self, token: int) -> bool:
        """Tell whether a record has a token."""
        return bool((self._values["token"] == token).any())

    def tokens(self) -> int:
        """Return the number of different tokens."""
        return int(np.unique(self._values["token"]).size)

    def bytes(self) -> int:
        """Return the number of bytes that are stored, those of aliases not counted again."""
        own = pc.equal(self._table.column("status"), STORED)
        kept = pc.and_(own, pc.is_valid(self._table.column("shard")))
        return pc.sum(self._table.filter(kept).column("nbytes")).as_py() or 0

    def find(self, module: str, slot: str, **wanted: str | int) -> list[Row]:
        """Return the rows with these values, ascending by forward; there is at least one.

        Raises:
            KeyNotFoundError: there is none; the message names the first part that does not match,
                in the order of the arguments.
        """
        code = self._codes["module"].get(module)
        if code is None:
            known = self._codes["module"]
            msg = f"No module {module!r} in {self._where}.{near(module, known)}"
            raise KeyNotFoundError(msg)
        rows = self._by_module[self._starts[code] : self._starts[code + 1]]
        found = f"Module {module!r}"
        for part, value in {"slot": slot, **wanted}.items():
            values = self._values[part][rows]
            match = values == (self._codes[part].get(str(value), -1) if part in _NAMES else value)
            if not match.any():
                raise self._unknown(found, part, value, values)
            rows = rows[match]
            found += f", {part} {value!r}" if value != "" else ""
        rows = rows[np.argsort(self._values["forward"][rows], kind="stable")]
        return [self._row(int(i)) for i in rows]

    def find_key(self, key: TensorKey) -> Row:
        """Return the row of one key; a table of all keys is made when first asked.

        Raises:
            KeyNotFoundError: there is none.
        """
        name = (key.rank, key.forward, key.module, key.slot, key.call, key.op)
        row = self._by_key.get(name)
        if row is not None:
            return row
        rest: dict[str, str | int] = key._asdict()
        del rest["run"], rest["module"], rest["slot"]
        return self.find(key.module, key.slot, **rest)[0]

    @cached_property
    def _by_key(self) -> Mapping[tuple[int | str, ...], Row]:
        names = ("rank", "forward", "module", "slot", "call", "op")
        keys = zip(*(self._list(name) for name in names), strict=True)
        rows = zip(*(self._list(name) for name in Row._fields), strict=True)
        found: dict[tuple[int | str, ...], Row] = {}
        for key, row in zip(keys, rows, strict=True):
            found.setdefault(key, Row._make(row))
        return found

    def _row(self, i: int) -> Row:
        return Row(*(column[i].as_py() for column in self._shown))

    def _unknown(
        self, found: str, part: str, value: str | int, values: NDArray[np.generic]
    ) -> KeyNotFoundError:
        present = np.unique(values).tolist()
        if part in _NAMES:
            names = list(self._codes[part])
            known = [names[code] for code in present]
            hint = f" Known: {_some(map(repr, known))}." if len(known) < 20 else ""
            hint = hint if part == "op" else near(str(value), known) or hint
        else:
            hint = f" Recorded: {_some(map(str, present))}."
        if part == "op" and value == "":
            what = "is recorded inside functions only; load_key() loads those"
        else:
            what = f"has no {part} {value!r}"
        return KeyNotFoundError(f"{found} {what} in {self._where}.{hint}")

    def _numbers(self, name: str) -> NDArray[Any]:
        return np.from_dlpack(self._whole(name))  # to_numpy() would import pandas first

    def _encoded(self, name: str) -> tuple[NDArray[Any], dict[str, int]]:
        column = self._whole(name)
        codes = {text: code for code, text in enumerate(column.dictionary.to_pylist())}
        if len(codes) < len(column.dictionary):
            msg = f"The index of {self._where} is damaged: column {name!r} has one text twice."
            raise DumpFormatError(msg)
        return np.from_dlpack(column.indices), codes

    def _list(self, name: str) -> list[Any]:
        column = self._table.column(name)
        values: list[Any] = (column.cast(pa.utf8()) if name in TEXTS else column).to_pylist()
        return values

    def _whole(self, name: str) -> pa.Array:
        column = self._table.column(name)
        if column.null_count:
            msg = f"The index of {self._where} is damaged: column {name!r} has nulls."
            raise DumpFormatError(msg)
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _some(values: Iterable[str], most: int = 12) -> str:
    shown = list(values)
    rest = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {rest} more" if rest > 0 else "")
