"""Element types: what torch calls them, what safetensors calls them, and tensors over raw bytes."""

import math
import mmap
from collections.abc import Sequence
from typing import Final, TypeAlias

import torch

_CODES: Final = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    # safetensors counts single values of this type, torch counts pairs.
    "float4_e2m1fn_x2": "U8",
}
_PAIRS: Final = {"complex32": "F16", "complex128": "F64"}
"""Types that safetensors lacks, stored with a last dimension of 2, as `view_as_real` has it."""

# A list of the allowed, since torch.frombuffer crashes the process on quantised types (torch 2.13).
_DTYPES: Final[dict[str, torch.dtype]] = {
    name: getattr(torch, name) for name in (*_CODES, *_PAIRS) if hasattr(torch, name)
}
_NO_NUMBERS: Final = frozenset({"float4_e2m1fn_x2"})

Memory: TypeAlias = mmap.mmap | bytearray | memoryview


def stored_as(dtype: str, shape: Sequence[int], nbytes: int) -> tuple[str, list[int]]:
    """Return the safetensors type and shape of a tensor.

    Bytes of an unknown type, or of a length that does not follow from the shape, are a vector of
    U8, so that no tensor can make its shard unreadable.
    """
    known = _DTYPES.get(dtype)
    if known is None or math.prod(shape) * known.itemsize != nbytes:
        return "U8", [nbytes]
    if dtype in _PAIRS:
        return _PAIRS[dtype], [*shape, 2]
    return _CODES[dtype], list(shape)


def torch_dtype(name: str) -> torch.dtype | None:
    """Return the torch type of that name, or None when this release cannot read it."""
    return _DTYPES.get(name)


def has_statistics(dtype: str) -> bool:
    """Tell whether torch can turn values of this type into numbers with an order."""
    known = _DTYPES.get(dtype)
    return known is not None and not known.is_complex and dtype not in _NO_NUMBERS


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor in memory, those of a copy where they are not contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def tensor_at(
    buffer: Memory, offset: int, dtype: torch.dtype, shape: Sequence[int]
) -> torch.Tensor:
    """Return the tensor at a byte offset of a writable buffer.

    It shares the buffer's memory and keeps it alive, unless the offset is no multiple of the
    element size: then it is a copy, because vectorised kernels may assume alignment.
    """
    count = math.prod(shape)
    if not count:
        return torch.empty(tuple(shape), dtype=dtype)
    if offset % dtype.itemsize:
        buffer = bytearray(memoryview(buffer)[offset : offset + count * dtype.itemsize])
        offset = 0
    flat = torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset)
    return flat.reshape(tuple(shape))
