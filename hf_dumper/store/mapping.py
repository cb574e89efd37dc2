"""Bytes of shards through memory maps, each access checked against the size of the file.

A dump is untrusted input: nothing is mapped before its name is known to be plain and its file to be
a regular one inside the dump, and no tensor is made before type, shape and bytes agree.
"""

import math
import mmap
import os
import re
import stat
from pathlib import Path
from typing import Final

import torch

from hf_dumper.errors import DumpFormatError
from hf_dumper.store.dtypes import tensor_at, torch_dtype
from hf_dumper.store.layout import partial_name
from hf_dumper.store.lookup import Row

PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")


class ShardMaps:
    """Maps of shards, opened when needed, shared by all tensors of a shard.

    The maps are private copies: writing to a tensor leaves the file alone, but later loads of the
    same tensor see what was written.
    """

    def __init__(self) -> None:
        """Open nothing yet."""
        self._maps: dict[tuple[Path, str], mmap.mmap] = {}

    def tensor(self, folder: Path, row: Row) -> torch.Tensor:
        """Return the tensor that a row describes, without a copy where its alignment allows.

        Raises:
            DumpFormatError: row and shard contradict each other, or the shard is missing.
        """
        dtype = torch_dtype(row.dtype)
        if dtype is None:
            msg = f"{folder / str(row.shard)}: this release cannot read type {row.dtype!r}."
            raise DumpFormatError(msg)
        numbers = (row.offset, row.nbytes, *row.shape) if row.shape is not None else (None,)
        if any(number is None or number < 0 for number in numbers):
            raise self._contradiction(folder, row, "a number is missing or negative")
        if math.prod(row.shape) * dtype.itemsize != row.nbytes:
            raise self._contradiction(folder, row, "the shape does not fit the number of bytes")
        memory = self._memory(folder, str(row.shard), row.offset + row.nbytes)
        if row.offset + row.nbytes > len(memory):
            raise self._contradiction(folder, row, f"the file ends at {len(memory)}")
        try:
            return tensor_at(memory, row.offset, dtype, row.shape)
        except RuntimeError as error:  # dimensions whose strides overflow
            raise self._contradiction(folder, row, str(error).splitlines()[0]) from error

    def close(self) -> None:
        """Let go of the maps; tensors that still use one keep it alive."""
        self._maps.clear()

    def _memory(self, folder: Path, shard: str, end: int) -> mmap.mmap:
        key = (folder, shard)
        memory = self._maps.get(key)
        if memory is None or end > len(memory):  # a shard that is still written grows
            memory = self._maps[key] = _map(folder, shard)
        return memory

    @staticmethod
    def _contradiction(folder: Path, row: Row, why: str) -> DumpFormatError:
        return DumpFormatError(
            f"{folder / str(row.shard)} is damaged: {row.dtype} {row.shape} at byte {row.offset}, "
            f"{row.nbytes} bytes long: {why}."
        )


def _map(folder: Path, shard: str) -> mmap.mmap:
    if not PLAIN_NAME.fullmatch(shard):
        msg = f"The index in {folder} is damaged: {shard!r} is no name of a shard."
        raise DumpFormatError(msg)
    # The final name once more at the end: the run may be committed between two looks.
    for name in (shard, partial_name(shard), shard):
        try:
            return _map_file(folder / name, folder)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            msg = f"{folder / name} cannot be mapped: {error}"
            raise DumpFormatError(msg) from error
    msg = f"{folder / shard} is missing."
    raise DumpFormatError(msg)


def _map_file(path: Path, folder: Path) -> mmap.mmap:
    if not path.resolve().is_relative_to(folder.resolve()):
        msg = f"{path} is a link that leaves the dump."
        raise DumpFormatError(msg)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            msg = f"{path} is no regular file."
            raise DumpFormatError(msg)
        return mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
    finally:
        os.close(fd)
