"""Tensors from one file of weights into another, a piece at a time."""

import json
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import torch

from hf_dumper.errors import ModelError
from hf_dumper.models.headers import data_start, read_header
from hf_dumper.store.dtypes import bytes_of, stored_as

PIECE: Final = 4 << 20
"""Bytes that are held at a time."""


class Source(NamedTuple):
    """One tensor that can be written: its type in safetensors' words, its bytes in pieces."""

    name: str
    code: str
    shape: Sequence[int]
    nbytes: int
    pieces: Callable[[], Iterator[bytes | memoryview]]


ALIGNED: Final = 64
"""Bytes within which a tensor keeps its place, since the last bits of some kernels depend on it."""


def write_safetensors(path: Path, tensors: Sequence[Source], place: int = 0) -> None:
    """Write a file of these tensors in this order; no more than a piece is held at a time.

    Data begin at a byte that is `place` modulo `ALIGNED`.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for t in tensors:
        begin, end = end, end + t.nbytes
        entries[t.name] = {"dtype": t.code, "shape": list(t.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * ((place - 8 - len(header)) % ALIGNED)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors:
            _write(file, tensor)


def _write(file: BinaryIO, tensor: Source) -> None:
    written = sum(file.write(piece) for piece in tensor.pieces())
    if written != tensor.nbytes:
        msg = f"{tensor.name} has {written:,} bytes of {tensor.nbytes:,}: the file is cut off."
        raise ModelError(msg)


def from_safetensors(path: Path, wanted: Callable[[str], bool]) -> list[Source]:
    """Return the wanted tensors of a safetensors file, in the order of their bytes."""
    start = data_start(path)
    found = sorted((t for t in read_header(path) if wanted(t.name)), key=lambda t: t.begin)
    return [
        Source(t.name, t.code, t.shape, t.nbytes, _range(path, start + t.begin, t.nbytes))
        for t in found
    ]


def _range(path: Path, begin: int, nbytes: int) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        with path.open("rb") as file:
            file.seek(begin)
            left = nbytes
            while left and (piece := file.read(min(left, PIECE))):
                left -= len(piece)
                yield piece

    return pieces


def beginning(source: Source, whole: Sequence[int], axis: int, size: int) -> Source:
    """Return a tensor with the first `size` of an axis only; the rest is passed over.

    Raises:
        ModelError: the tensor has not the shape `whole`, so that its bytes mean something else.
    """
    if tuple(source.shape) != tuple(whole):
        msg = f"{source.name} is {tuple(source.shape)}, not {tuple(whole)}, so it cannot be cut."
        raise ModelError(msg)
    shape = [*whole[:axis], size, *whole[axis + 1 :]]
    row = source.nbytes // math.prod(whole[:axis])
    kept = row * size // whole[axis]

    def pieces() -> Iterator[memoryview]:
        column = 0
        for read in source.pieces():
            piece, done = memoryview(read), 0
            while done < len(piece):
                end = kept if column < kept else row
                taken = min(end - column, len(piece) - done)
                if column < kept:
                    yield piece[done : done + taken]
                done, column = done + taken, (column + taken) % row

    return Source(source.name, source.code, shape, kept * math.prod(whole[:axis]), pieces)


def from_bin(path: Path, wanted: Callable[[str], bool]) -> list[Source]:
    """Return the wanted tensors of a .bin file; the pickle is read with `weights_only`.

    Those of a zip file are mapped, not read; a file of the format before that is read as a whole.

    Raises:
        ModelError: it holds more than tensors, which would have to be run.
    """
    held = _load(path)
    return [_of_tensor(name, t) for name, t in held.items() if wanted(name)]


def _load(path: Path) -> Mapping[str, torch.Tensor]:
    from zipfile import is_zipfile

    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        told = " ".join(str(error).split())[:160]
        msg = f"{str(path)!r} cannot be read as tensors alone: {told}"
        raise ModelError(msg) from error
    if not isinstance(held, dict):
        msg = f"{str(path)!r} holds {type(held).__name__}, not names and tensors."
        raise ModelError(msg)
    return {str(n): t for n, t in held.items() if isinstance(t, torch.Tensor)}


def _of_tensor(name: str, tensor: torch.Tensor) -> Source:
    nbytes = tensor.numel() * tensor.element_size()
    dtype = str(tensor.dtype).removeprefix("torch.")
    code, shape = stored_as(dtype, list(tensor.shape), nbytes)

    def pieces() -> Iterator[memoryview]:
        values = bytes_of(tensor)
        return (values[i : i + PIECE] for i in range(0, nbytes, PIECE))

    return Source(name, code, shape, nbytes, pieces)
