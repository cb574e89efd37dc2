"""Which tensors have values that can be stored as plain bytes."""

from typing import Final

import torch

PLAIN: Final = frozenset({torch.Tensor, torch.nn.Parameter})
"""Classes whose memory holds the values; any other may keep them elsewhere."""

STORABLE: Final = {
    dtype: str(dtype).removeprefix("torch.")
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2,
        torch.float8_e5m2fnuz,
        torch.complex64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint64,
        torch.uint32,
        torch.uint16,
        torch.uint8,
        torch.bool,
    )
}
"""Names of the dtypes that safetensors 0.8 can hold."""


def unstorable(tensor: torch.Tensor) -> str | None:
    """Return why a tensor cannot be stored as plain bytes, None when it can."""
    if type(tensor) not in PLAIN:
        return f"tensor subclass {type(tensor).__name__}"
    if tensor.layout is not torch.strided:
        return f"layout {str(tensor.layout).removeprefix('torch.')}"
    if tensor.is_meta:
        return "meta tensor, it has no values"
    if not tensor.data_ptr() and tensor.numel():
        return "tensor without memory"
    if tensor.dtype not in STORABLE:
        return f"dtype {str(tensor.dtype).removeprefix('torch.')} cannot be stored"
    return None


def is_literal(tensor: torch.Tensor) -> bool:
    """Tell whether the values are plain bytes at one place in this process's memory."""
    return (
        tensor.is_cpu
        and tensor.is_contiguous()
        and not (tensor.is_neg() or tensor.is_conj())  # flags that a reader of the bytes must apply
    )


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of any tensor, also of one that cannot be stored."""
    try:
        return tuple(int(n) for n in tensor.shape)
    except (RuntimeError, TypeError, AttributeError):  # a nested tensor has no shape
        return ()
