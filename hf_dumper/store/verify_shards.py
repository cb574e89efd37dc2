"""The bytes of shards against the hashes, the places and the names that the index has."""

import io
import json
import os
import stat
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64

from hf_dumper.core.types import STORED
from hf_dumper.errors import DumpFormatError
from hf_dumper.store.dtypes import stored_as
from hf_dumper.store.findings import Findings
from hf_dumper.store.layout import partial_name
from hf_dumper.store.mapping import PLAIN_NAME

BLOCK: Final = 1 << 22
"""Bytes that are read at once."""

_LENGTH_BYTES: Final = 8
_MOST_HEADER: Final = 100_000_000
"""The longest header that safetensors itself reads."""

_OWN: Final = ("tensor", "offset", "nbytes", "hash", "dtype", "shape")


class Own(NamedTuple):
    """What the index says of bytes in a shard."""

    tensor: str
    offset: int
    nbytes: int
    hash: int
    dtype: str
    shape: Sequence[int]

    @property
    def end(self) -> int:
        """Where the bytes end in the file."""
        return self.offset + self.nbytes


def check_shards(folder: Path, index: pa.Table, findings: Findings, *, committed: bool) -> None:
    """Check every shard of a rank, and that there are no others."""
    names = sorted(filter(None, pc.unique(index.column("shard")).to_pylist()))
    plain = [name for name in names if PLAIN_NAME.fullmatch(name)]
    for name in set(names) - set(plain):
        findings.add(folder, f"the index names {name!r}, which is no name of a shard")
    for name in plain:
        rows = index.filter(pc.equal(index.column("shard"), name))
        file = _file(folder, name, committed=committed)
        good = ShardCheck(file, own_rows(rows), index, findings, committed).run()
        tensors = rows.column("tensor").to_pylist()
        findings.hashed += sum(tensor in good for tensor in tensors)
    _find_strays(folder, plain, findings, committed=committed)


def _file(folder: Path, name: str, *, committed: bool) -> Path:
    final = folder / name
    return final if committed or final.exists() else folder / partial_name(name)


def _find_strays(
    folder: Path, names: Sequence[str], findings: Findings, *, committed: bool
) -> None:
    """Find shards that no record is in; those of a forward that was cut off are none."""
    for file in sorted((*folder.glob("*.safetensors"), *folder.glob("shard-*.partial"))):
        if committed and file.name not in names:
            findings.add(file, "it is a stray: the index does not name it")


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """One shard, the rows that own bytes in it, in order, and the index that they are from.

    A shard of a run that was cut off may hold more than the index says: a forward that did not end.
    """

    file: Path
    own: Sequence[Own]
    index: pa.Table
    findings: Findings
    committed: bool

    def run(self) -> set[str]:
        """Check the shard; return the names of the tensors whose bytes are those recorded."""
        try:
            with _opened(self.file) as shard:
                size = os.fstat(shard.fileno()).st_size
                if self.file.suffix != ".partial" and self._is_another(shard, size):
                    return set()
                return self._check_bytes(shard, size)
        except FileNotFoundError:
            self._add("the file is missing", self._names)
        except DumpFormatError as error:
            self._add(str(error), self._names)
        except OSError as error:
            self._add(f"it cannot be read: {error.strerror or error}", self._names)
        return set()

    @property
    def _names(self) -> list[str]:
        return [row.tensor for row in self.own]

    def _add(self, what: str, names: Sequence[str] = ()) -> None:
        self.findings.add(self.file, what, names)

    def _is_another(self, shard: io.FileIO, size: int) -> bool:
        """Check the header against the index; return whether the file is that of another shard."""
        try:
            start, header = _read_header(shard, size)
        except DumpFormatError as error:
            self._add(str(error))
            return False
        wanted = {row.tensor: _entry(row, start) for row in self.own}
        other = self._owner(header) if header.keys().isdisjoint(wanted) else None
        if other is not None:
            self._add(f"it holds the tensors of {other}", list(wanted))
            return True
        differs = [name for name in wanted if header.get(name) != wanted[name]]
        if differs:
            self._add("the header of the shard does not have it as the index has", differs)
        extra = [name for name in header if name not in wanted]
        if extra and self.committed:
            self._add("it is a stray: the index does not have it", extra)
        return False

    def _owner(self, header: Mapping[str, Any]) -> str | None:
        """Return the shard whose tensors a header lists, None if it is not just one."""
        names = pa.array(list(header), pa.utf8())
        listed = pc.is_in(self.index.column("tensor"), value_set=names)
        shards: list[str] = pc.unique(self.index.filter(listed).column("shard")).to_pylist()
        return shards[0] if len(shards) == 1 else None

    def _check_bytes(self, shard: io.FileIO, size: int) -> set[str]:
        """Hash the bytes of every tensor; return the names of those that are right."""
        wrong: defaultdict[str, list[str]] = defaultdict(list)
        buffer = memoryview(bytearray(BLOCK))
        last = max((row.end for row in self.own), default=0)
        place = self.own[0].offset if self.own else 0
        for row in self.own:
            if row.end > size:
                cut = f"the file is cut: it ends at byte {size}, and its tensors at {last}"
                wrong[cut].append(row.tensor)
            elif _hash_of(shard, row.offset, row.nbytes, buffer) != row.hash:
                wrong["its bytes do not have the hash of the index"].append(row.tensor)
            if row.offset != place:
                wrong["it does not begin where the tensor before it ends"].append(row.tensor)
            place = row.end
            self.findings.read(max(0, min(row.end, size) - row.offset))
        for what, names in wrong.items():
            self._add(what, names)
        if self.committed and size > last:
            self._add(f"{size - last} bytes follow its last tensor")
        return set(self._names).difference(*wrong.values())


def own_rows(rows: pa.Table) -> list[Own]:
    """Return the rows that own their bytes, in order of the file; incomplete rows are left out."""
    rows = rows.filter(pc.equal(rows.column("status"), STORED)).select(list(_OWN))
    found = (Own(**row) for batch in rows.to_batches() for row in batch.to_pylist())
    whole = (row for row in found if None not in row and row.offset >= 0 and row.nbytes >= 0)
    return sorted(whole, key=lambda row: (row.offset, row.nbytes))


def _opened(file: Path) -> io.FileIO:
    """Open a regular file inside the dump.

    Raises:
        DumpFormatError: it is something else.
    """
    if not file.resolve().is_relative_to(file.parent.resolve()):
        msg = "it is a link that leaves the dump"
        raise DumpFormatError(msg)
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        msg = "it is no regular file"
        raise DumpFormatError(msg)
    return io.FileIO(fd)


def _entry(row: Own, start: int) -> dict[str, Any]:
    code, shape = stored_as(row.dtype, row.shape, row.nbytes)
    offsets = [row.offset - start, row.end - start]
    return {"dtype": code, "shape": shape, "data_offsets": offsets}


def _read_header(shard: io.FileIO, size: int) -> tuple[int, dict[str, Any]]:
    """Return where the data of a safetensors file begins, and its header.

    Raises:
        DumpFormatError: it has no whole header, or one that says a thing twice.
    """
    shard.seek(0)
    length = int.from_bytes(shard.read(_LENGTH_BYTES), "little")
    start = _LENGTH_BYTES + length
    if size < start or length > _MOST_HEADER:
        msg = f"the file is cut or its header damaged: {size} bytes, and a header of {start}"
        raise DumpFormatError(msg)
    text = b""
    while len(text) < length:
        text += shard.read(length - len(text))
    plain = text.rstrip(b" ")  # of white space only spaces may follow: JSON would not see others
    try:
        header = json.loads(plain.decode("ascii"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        msg = f"the header is damaged: {error}"
        raise DumpFormatError(msg) from error
    if not (plain.startswith(b"{") and plain.endswith(b"}")):
        msg = "the header is damaged: it is no object followed by spaces"
        raise DumpFormatError(msg)
    return start, header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        msg = "a name is in it twice"
        raise ValueError(msg)
    return dict(pairs)


def _hash_of(shard: io.FileIO, offset: int, nbytes: int, buffer: memoryview) -> int:
    """Return the xxh3-64 of some bytes of a file, read block by block."""
    hasher = xxh3_64()
    shard.seek(offset)
    while nbytes:
        count = shard.readinto(buffer[: min(nbytes, len(buffer))])
        if not count:  # the file became shorter while it was read
            break
        hasher.update(buffer[:count])
        nbytes -= count
    return hasher.intdigest()
