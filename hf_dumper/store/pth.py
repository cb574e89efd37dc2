"""Single tensors as torch writes them, read back as the untrusted input that they are."""

import os
import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final

import torch

from hf_dumper.errors import DumpFormatError, DumpWriteError
from hf_dumper.store.dtypes import torch_dtype
from hf_dumper.store.files import temporary
from hf_dumper.store.lookup import Row

OVERHEAD: Final = 64 << 10
"""Bytes that a .pth file of another tool may have besides those of its tensor."""

ROOM: Final = 4 << 10
"""Such bytes at most when torch writes it: 1.5 to 1.9 kB, growing with the dimensions."""


def write_pth(path: Path, tensor: torch.Tensor) -> int:
    """Write a tensor into a file of its own, which appears whole; an older one is replaced.

    The file holds the bytes of the tensor and not those of the memory that it is a view of. Returns
    the size of the file.

    Raises:
        DumpWriteError: torch cannot write it.
        OSError: the file cannot be written.
    """
    unfinished = temporary(path)
    try:
        with unfinished.open("wb") as file:
            torch.save(tensor.detach().clone(memory_format=torch.contiguous_format), file)
            size = file.tell()
    except RuntimeError as error:  # also what a full disk is to the writer inside of torch
        msg = f"Cannot write {path}: {str(error).splitlines()[0]}"
        raise DumpWriteError(msg) from error
    unfinished.replace(path)
    return size


def read_pth(folder: Path, row: Row) -> torch.Tensor:
    """Return the tensor that a row of an index says is in the file `row.shard` below `folder`.

    Nothing is unpickled but a tensor, and nothing larger than the row says is read.

    Raises:
        DumpFormatError: the file is missing or damaged, or holds something else.
    """
    path = _inside(folder, str(row.shard))
    try:
        with _opened(path) as file:
            _check_size(path, file, row.nbytes)
            loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
    except DumpFormatError:
        raise
    except Exception as error:  # a damaged pickle raises whatever it runs into
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise _bad(path, reason) from error
    return _checked(path, loaded, row)


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if ".." in PurePosixPath(name).parts or not path.resolve().is_relative_to(folder.resolve()):
        raise _bad(path, "it lies outside of the dump")
    return path


def _opened(path: Path) -> BinaryIO:
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
        raise _bad(path, "it is no regular file")
    return path.open("rb")


def _check_size(path: Path, file: BinaryIO, nbytes: int) -> None:
    """Make sure that reading the file takes no more memory than the tensor.

    torch writes uncompressed archives; a compressed one could become any number of bytes.
    """
    size = os.fstat(file.fileno()).st_size
    if size > nbytes + OVERHEAD:
        raise _bad(path, f"it has {size} bytes for a tensor of {nbytes}")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _bad(path, "it is compressed, which torch does not do")
    if sum(member.file_size for member in members) > size:
        raise _bad(path, "its parts are larger than the whole")
    file.seek(0)


def _checked(path: Path, loaded: Any, row: Row) -> torch.Tensor:
    if type(loaded) is not torch.Tensor:
        raise _bad(path, f"it holds {type(loaded).__name__}, not a tensor")
    found = f"{loaded.dtype} {list(loaded.shape)}"
    if loaded.dtype is not torch_dtype(row.dtype) or list(loaded.shape) != list(row.shape):
        raise _bad(path, f"it holds {found}, and the index says {row.dtype} {list(row.shape)}")
    return loaded


def _bad(path: Path, why: str) -> DumpFormatError:
    return DumpFormatError(f"{path} cannot be read as a tensor: {why}")
