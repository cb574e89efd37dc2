"""Files that grow past the page cache.

Copying into the cache costs a core, above all where its pages are new to the machine; O_DIRECT
takes almost no processor. It wants memory, offsets and lengths aligned to a block, so bytes are
gathered in an aligned buffer, and the last block is written again when it grows.
"""

import fcntl
import mmap
import os
from errno import EINVAL, ENOSPC, EOPNOTSUPP
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hf_dumper.store.files import GrowingFile
from hf_dumper.store.layout import PAGE

BUFFER_BYTES: Final = 1 << 20


class DirectFile(GrowingFile):
    """A file like GrowingFile, written around the page cache.

    Up to a page of padding follows `end` until the file is settled; nobody refers to it.
    """

    def __init__(self, path: Path, head: bytes = b"") -> None:
        """Create the file, which must not exist, with `head` as its first bytes.

        Raises:
            OSError: the file system has no direct access, or the file cannot be written.
        """
        self._memory = mmap.mmap(-1, BUFFER_BYTES)
        self._buffer = np.frombuffer(self._memory, np.uint8)
        self._held = 0
        self._start = 0
        super().__init__(path, head, os.O_DIRECT)

    def append(self, view: memoryview) -> None:
        """Write bytes at the end of the file."""
        held, start, tail = self._held, self._start, self._buffer[: self._held].copy()
        try:
            self._gather(np.frombuffer(view, np.uint8))
            self._write_held()
        except BaseException:
            self._held, self._start, self._buffer[:held] = held, start, tail
            os.ftruncate(self._fd, self.end)
            raise
        self.end += view.nbytes

    def overwrite(self, head: bytes) -> None:
        """Cut the padding off and replace the first bytes; nothing is appended after that."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        os.ftruncate(self._fd, self.end)
        super().overwrite(head)

    def _gather(self, data: NDArray[np.uint8]) -> None:
        while data.size:
            taken = min(data.size, BUFFER_BYTES - self._held)
            # NumPy copies without the GIL; an assignment to a memoryview keeps it.
            np.copyto(self._buffer[self._held : self._held + taken], data[:taken])
            self._held += taken
            data = data[taken:]
            if self._held == BUFFER_BYTES:
                self._write_held()

    def _write_held(self) -> None:
        """Write what is held, the last block padded, and go on holding only that block."""
        length, done = -(-self._held // PAGE) * PAGE, 0
        while done < length:
            view = memoryview(self._memory)[done:length]
            written = os.pwrite(self._fd, view, self._start + done) // PAGE * PAGE
            if not written:  # less than a block: the disk is full
                raise OSError(ENOSPC, os.strerror(ENOSPC), str(self.path))
            done += written
        whole = self._held // PAGE * PAGE
        self._start += whole
        self._held -= whole
        self._buffer[: self._held] = self._buffer[whole : whole + self._held].copy()


def grow(path: Path, head: bytes) -> GrowingFile:
    """Create a growing file, written around the page cache where that can be done."""
    if hasattr(os, "O_DIRECT"):
        try:
            return DirectFile(path, head)
        except OSError as error:
            if error.errno not in (EINVAL, EOPNOTSUPP):  # tmpfs and network file systems say so
                raise
            path.unlink(missing_ok=True)
    return GrowingFile(path, head)
