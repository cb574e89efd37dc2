"""Names, types and shapes of the tensors in files of weights, without the weights."""

import json
import math
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch

from hf_dumper.errors import ModelError

_MOST_HEADER: Final = 100_000_000
"""Bytes that safetensors allows for a header."""

_NAMES: Final = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
"""What safetensors calls a type -> what torch calls it; others keep the name of safetensors."""

_WIDTHS: Final = {code: getattr(torch, name).itemsize for code, name in _NAMES.items()}
"""Bytes of an element; types that others may come with are not known here."""


class TensorHeader(NamedTuple):
    """One tensor of a file.

    `code` is the type's name in safetensors, `dtype` in torch. `begin` and `end` are bytes from the
    start of the file's data, both 0 in a .bin file.
    """

    name: str
    dtype: str
    code: str
    shape: tuple[int, ...]
    begin: int
    end: int
    nbytes: int
    file: str

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


Header = list[TensorHeader]


def tensor_header(
    name: str, code: str, shape: Sequence[int], offsets: Sequence[int], file: str
) -> TensorHeader:
    """Return what an entry of a safetensors header says.

    Raises:
        ValueError: it cannot be true.
    """
    begin, end = offsets
    whole = [*shape, begin, end]
    if not isinstance(code, str) or any(type(n) is not int or n < 0 for n in whole):
        msg = f"{name!r} has the type {code!r}, the shape {shape!r} and the place {offsets!r}"
        raise ValueError(msg)
    dtype = _NAMES.get(code, code)
    found = TensorHeader(name, dtype, code, tuple(shape), begin, end, end - begin, file)
    width = _WIDTHS.get(code)
    if width is not None and found.elements * width != found.nbytes:
        msg = f"{name!r} has {found.nbytes:,} bytes for {found.elements:,} elements of {dtype}"
        raise ValueError(msg)
    return found


def data_start(path: Path) -> int:
    """Return where the data of a safetensors file begin.

    Raises:
        ModelError: the file is damaged.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(_MOST_HEADER, path.stat().st_size - 8):
        msg = f"{str(path)!r} is no whole safetensors file: its header would have {length:,} bytes."
        raise ModelError(msg)
    return 8 + length


def read_header(path: Path) -> Header:
    """Return the tensors of a safetensors file.

    Raises:
        ModelError: the file is damaged or cut off.
    """
    start = data_start(path)
    with path.open("rb") as file:
        text = file.read(start)[8:]
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        found = [
            tensor_header(name, e["dtype"], e["shape"], e["data_offsets"], path.name)
            for name, e in entries.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        msg = f"The header of {str(path)!r} cannot be read: {error}."
        raise ModelError(msg) from error
    _check_length(path, start, found)
    return found


def _check_length(path: Path, start: int, found: Header) -> None:
    wanted, size = start + max((t.end for t in found), default=0), path.stat().st_size
    if wanted != size or any(not 0 <= t.begin <= t.end for t in found):
        msg = f"{str(path)!r} has {size:,} bytes, and its header says {wanted:,}: it is cut off"
        raise ModelError(msg + " or damaged. Download it again.")


def read_bin(path: Path) -> tuple[Header, str]:
    """Return the tensors of a .bin file, and why they are not known, "" when they are.

    The pickle is read with `weights_only`, which runs no code, and the bytes of the tensors are not
    read. The old format, no zip file, has no such way, so it is left alone.
    """
    if not zipfile.is_zipfile(path):
        return [], "of the format before torch 1.6, which cannot be read without its weights"
    try:
        held = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        told = " ".join(str(error).split())[:120]
        return [], f"it holds {_stored(path):,} bytes in {told!r}"
    if not isinstance(held, dict):
        return [], f"it holds {type(held).__name__}, not names and tensors"
    tensors = {n: t for n, t in held.items() if isinstance(t, torch.Tensor)}
    return [_of_tensor(str(name), tensor, path.name) for name, tensor in tensors.items()], ""


def _stored(path: Path) -> int:
    """Return the bytes of the storages that the listing of a zip file names."""
    with zipfile.ZipFile(path) as archive:
        return sum(i.file_size for i in archive.infolist() if "/data/" in i.filename)


def _of_tensor(name: str, tensor: torch.Tensor, file: str) -> TensorHeader:
    dtype = str(tensor.dtype).removeprefix("torch.")
    code = next((c for c, n in _NAMES.items() if n == dtype), dtype)
    nbytes = tensor.numel() * tensor.element_size()
    return TensorHeader(name, dtype, code, tuple(tensor.shape), 0, 0, nbytes, file)
