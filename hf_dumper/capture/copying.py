"""Copies of bytes by their addresses."""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

# ctypes.memmove releases the GIL, and the thread that then takes it may keep it for milliseconds:
# for the few kilobytes of one decoded token that is a hundred times the copy.
memmove = ctypes.PyDLL(None).memmove
"""Copy bytes: (to, from, number)."""

memmove.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
memmove.restype = ctypes.c_void_p

Copier: TypeAlias = Callable[[int, int, int], Any]

_compiled: Copier = ctypes.memmove
with suppress(ImportError):
    from hf_dumper.capture._hooks import copy_large as _compiled


def large_copier(*, compiled: bool) -> Copier:
    """Return what copies many bytes in the same way, past the caches where that was built."""
    return _compiled if compiled else ctypes.memmove
