"""Dumped parameters and buffers: written one tensor at a time, read one at a time.

`weights/index.json` names each tensor, its further names, its type, shape and hash, and where its
bytes are. Natively they are in safetensors files, in msit's layout a .pth file for each name.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import torch
import xxhash

from hf_dumper.core.digests import sealed
from hf_dumper.core.names import near
from hf_dumper.core.weights import Weight
from hf_dumper.errors import (
    DumpFormatError,
    DumpIdentityError,
    DumpNotFoundError,
    DumpWriteError,
    KeyNotFoundError,
)
from hf_dumper.store.dtypes import bytes_of, stored_as, torch_dtype
from hf_dumper.store.files import read_json, temporary, write_json
from hf_dumper.store.lookup import Row
from hf_dumper.store.mapping import ShardMaps
from hf_dumper.store.paths import distinct, escaped
from hf_dumper.store.pth import write_pth
from hf_dumper.store.shards import SHARD_BYTES

WEIGHTS: Final = "weights"
INDEX: Final = "index.json"
MSIT_INDEX: Final = "weights.json"

_ALIGNMENT: Final = 8
_LENGTH_BYTES: Final = 8


class Place(NamedTuple):
    """Where the bytes of a weight are; `offset` counts from the start of the file."""

    shard: str
    offset: int


def write_weights(
    folder: Path, weights: Sequence[Weight], *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the weights into safetensors files below `folder`, which appears whole.

    Values are loaded one tensor at a time. `shard_bytes` is the size at which the next file begins.

    Raises:
        DumpWriteError: a weight is not what it was said to be.
        OSError: the folder cannot be written.
    """
    unfinished = temporary(folder)
    shutil.rmtree(unfinished, ignore_errors=True)  # what a killed process of this number left
    unfinished.mkdir(parents=True)
    entries: dict[str, dict[str, Any]] = {}
    for number, group in enumerate(_groups(_stored(weights), shard_bytes)):
        name = f"{WEIGHTS}-{number:05d}.safetensors"
        entries |= _write_shard(unfinished / name, group)
    _write_index(unfinished / INDEX, entries, weights)
    unfinished.rename(folder)


def write_weight_files(
    top: Path, inside: str, index_folder: Path, weights: Sequence[Weight]
) -> None:
    """Write the weights as msit has them: `root.<name>.pth` for each name, below `top / inside`.

    Further names of a tensor are links to its one file where the file system has them. The index
    goes into `index_folder`.

    Raises:
        DumpWriteError: a weight is not what it was said to be.
        OSError: a folder cannot be written.
    """
    (top / inside).mkdir(parents=True, exist_ok=True)
    entries: dict[str, dict[str, Any]] = {}
    taken: set[str] = set()
    for weight in _stored(weights):
        stems = (f"{inside}/{escaped(f'root.{name}')}" for name in weight.names)
        first, *others = [distinct(stem, ".pth", taken) for stem in stems]
        digest = _write_file(top / first, weight)
        for other in others:
            _link(top / first, top / other)
        entries[weight.names[0]] = _entry(weight, Place(first, 0), digest)
    _write_index(index_folder / MSIT_INDEX, entries, weights)


def check_weights(folder: Path, weights: Sequence[Weight]) -> None:
    """Make sure that the weights in `folder` are these.

    Raises:
        DumpIdentityError: they are others.
        DumpFormatError: the index is damaged.
    """
    there = read_json(folder / INDEX).get("tensors", {})
    for weight in _stored(weights):
        name = weight.names[0]
        known = there.get(name, {}).get("hash") if isinstance(there, dict) else None
        if known != _digest(_load(weight)):
            msg = (
                f"{folder.parent} holds other weights: {name!r} differs. "
                "Choose another dump_path, or overwrite=True to remove that dump."
            )
            raise DumpIdentityError(msg)


class Weights(Mapping[str, torch.Tensor]):
    """The dumped weights by name, each read when it is asked for; tied ones under all their names.

    Attributes:
        skipped: Why a weight has no values here, by name.
    """

    def __init__(self, index: Path, load: Callable[[Row], torch.Tensor]) -> None:
        """Read the index; `load` returns the tensor of a row.

        Raises:
            KeyNotFoundError: there is no index, so no weights were dumped.
            DumpFormatError: the index is damaged.
        """
        self._load = load
        try:
            facts = read_json(index)
        except DumpNotFoundError as error:
            msg = f"{index.parent.parent} holds no weights; dump_weight=True dumps them."
            raise KeyNotFoundError(msg) from error
        try:
            self._rows = dict(_rows(facts))
            self._kinds = {str(n): str(w["kind"]) for n, w in facts["tensors"].items()}
            self._hashes = {str(n): w.get("hash") for n, w in facts["tensors"].items()}
            self._names = {str(n): tuple(w["names"]) for n, w in facts["tensors"].items()}
            self.skipped = {str(n): str(w["reason"]) for n, w in facts["skipped"].items()}
            self._skipped = [_without_values(str(n), w) for n, w in facts["skipped"].items()]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            msg = f"{index} is damaged: {error!r}"
            raise DumpFormatError(msg) from error

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a parameter or buffer.

        Raises:
            KeyNotFoundError: there is none of that name, or its values were not dumped.
            DumpFormatError: its file is damaged.
        """
        plain = name.removeprefix("root.")
        if plain in self.skipped:
            msg = f"{name!r} was not dumped: {self.skipped[plain]}."
            raise KeyNotFoundError(msg)
        if plain not in self._rows:
            msg = f"No weight is named {name!r}.{near(plain, self._rows)}"
            raise KeyNotFoundError(msg)
        return self._load(self._rows[plain])

    def described(self) -> list[Weight]:
        """Return what each weight is, under all its names, also one that has no values here.

        What they load raises DumpFormatError when it is not what was dumped.
        """
        found = []
        for name, names in self._names.items():
            row = self._rows[name]
            shape, load = tuple(row.shape), partial(self._checked, name)
            kind = self._kinds[name]
            found.append(Weight(names, kind, row.dtype, shape, row.nbytes, "", load))
        return found + self._skipped

    def _checked(self, name: str) -> torch.Tensor:
        tensor = self._load(self._rows[name])
        if self._hashes[name] not in (None, _digest(tensor)):
            msg = f"The bytes of weight {name!r} do not have the hash of the index: it is damaged."
            raise DumpFormatError(msg)
        return tensor

    def __contains__(self, name: object) -> bool:
        """Tell whether there are values of that name, without reading them."""
        return isinstance(name, str) and name.removeprefix("root.") in self._rows

    def __iter__(self) -> Iterator[str]:
        """Iterate over every name of every weight."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._rows)


def native_weights(dump: Path, maps: ShardMaps) -> Weights:
    """Return the weights of a dump in the native layout.

    Raises:
        KeyNotFoundError: it holds none.
        DumpFormatError: their index is damaged.
    """
    folder = dump / WEIGHTS
    return Weights(folder / INDEX, lambda row: maps.tensor(folder, row))


def _stored(weights: Sequence[Weight]) -> list[Weight]:
    return [weight for weight in weights if not weight.reason]


def _groups(weights: Sequence[Weight], most_bytes: int) -> Iterator[list[Weight]]:
    group: list[Weight] = []
    total = 0
    for weight in weights:
        if group and total + weight.nbytes > most_bytes:
            yield group
            group, total = [], 0
        group.append(weight)
        total += weight.nbytes
    if group:
        yield group


def _write_shard(path: Path, weights: Sequence[Weight]) -> dict[str, dict[str, Any]]:
    """Write one safetensors file; return the entries of its tensors in the index.

    Large elements come first, so that every tensor is aligned.
    """
    ordered = sorted(weights, key=lambda w: -_itemsize(w.dtype))
    header: dict[str, Any] = {}
    end = 0
    for weight in ordered:
        code, shape = stored_as(weight.dtype, weight.shape, weight.nbytes)
        begin, end = end, end + weight.nbytes
        header[weight.names[0]] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // _ALIGNMENT) * _ALIGNMENT)
    offset = _LENGTH_BYTES + len(text)
    entries = {}
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for weight in ordered:
            digest = _write_values(file, weight)
            entries[weight.names[0]] = _entry(weight, Place(path.name, offset), digest)
            offset += weight.nbytes
    return entries


def _write_values(file: BinaryIO, weight: Weight) -> str:
    """Write the bytes of one weight, and return their hash; nothing of it stays in memory."""
    tensor = _load(weight)
    file.write(bytes_of(tensor))
    return _digest(tensor)


def _write_file(path: Path, weight: Weight) -> str:
    """Do the same into a .pth file."""
    tensor = _load(weight)
    write_pth(path, tensor)
    return _digest(tensor)


def _load(weight: Weight) -> torch.Tensor:
    tensor = weight.load()
    if tensor.nbytes != weight.nbytes or str(tensor.dtype) != f"torch.{weight.dtype}":
        msg = (
            f"Weight {weight.names[0]!r} is {tensor.dtype} {list(tensor.shape)}, "
            f"and was said to be {weight.dtype} {list(weight.shape)}."
        )
        raise DumpWriteError(msg)
    return tensor


def _digest(tensor: torch.Tensor) -> str:
    return xxhash.xxh3_64_hexdigest(bytes_of(tensor))


def _entry(weight: Weight, place: Place, digest: str) -> dict[str, Any]:
    return {
        "names": list(weight.names),
        "kind": weight.kind,
        "dtype": weight.dtype,
        "shape": list(weight.shape),
        "shard": place.shard,
        "offset": place.offset,
        "nbytes": weight.nbytes,
        "hash": digest,
    }


def _write_index(
    path: Path, entries: Mapping[str, Mapping[str, Any]], weights: Sequence[Weight]
) -> None:
    skipped = {
        name: {"kind": w.kind, "dtype": w.dtype, "shape": list(w.shape), "reason": w.reason}
        for w in weights
        if w.reason
        for name in w.names
    }
    write_json(path, sealed({"tensors": entries, "skipped": skipped}))


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, Row]]:
    for entry in facts["tensors"].values():
        numbers = [int(n) for n in (entry["offset"], entry["nbytes"], *entry["shape"])]
        offset, nbytes, *shape = numbers
        dtype, shard = str(entry["dtype"]), str(entry["shard"])
        row = Row(0, 0, "", dtype, shape, shard, offset, nbytes, "stored", "")
        for name in entry["names"]:
            yield str(name), row


def _without_values(name: str, facts: Mapping[str, Any]) -> Weight:
    shape, reason = tuple(map(int, facts["shape"])), str(facts["reason"])
    load = partial(torch.empty, shape, device="meta")
    return Weight((name,), str(facts["kind"]), str(facts["dtype"]), shape, 0, reason, load)


def _itemsize(dtype: str) -> int:
    known = torch_dtype(dtype)
    return 1 if known is None else known.itemsize


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
