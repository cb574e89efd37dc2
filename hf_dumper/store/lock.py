"""One process at a time writes a dump.

The lock belongs to an open file, so the system releases it when the process ends, however that
happens. Sessions of one process share it: each run has a folder of its own. A forked process has a
copy of the open file, which would keep the lock beyond our own end, so it is closed there.

Where the system (Windows) or the file system has no such locks, a dump is not locked.
"""

import os
import threading
from contextlib import suppress
from errno import EACCES, EAGAIN
from pathlib import Path
from typing import Final
from weakref import WeakSet, WeakValueDictionary, finalize

from hf_dumper.errors import DumpWriteError
from hf_dumper.store.layout import LOCK

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FLAGS: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


class DumpLock:
    """The right of this process to write a dump, for as long as something refers to it."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises:
            DumpWriteError: another process has it.
            OSError: the folder cannot be written.
        """
        self._path = folder.resolve() / LOCK
        self._fd = _locked(self._path, folder)
        self._end = finalize(self, _release, self._fd, self._path)
        _locks.add(self)

    @property
    def is_held(self) -> bool:
        """Whether the lock still is that of the folder, which somebody may have removed."""
        return self._end.alive and _is_at(self._fd, self._path)

    def forget(self) -> None:
        """Close the copy that a forked process has; the lock stays with its owner."""
        if self._end.detach() is not None:
            os.close(self._fd)


_locks: WeakSet[DumpLock] = WeakSet()
_shared: WeakValueDictionary[Path, DumpLock] = WeakValueDictionary()
_sharing = threading.Lock()


def lock_dump(folder: Path) -> DumpLock:
    """Return the lock of this process on a dump; it ends with the last reference to it.

    Raises:
        DumpWriteError: another process writes the dump.
        OSError: the folder cannot be written.
    """
    key = folder.resolve()
    with _sharing:
        lock = _shared.get(key)
        if lock is None or not lock.is_held:
            lock = _shared[key] = DumpLock(folder)
        return lock


def _locked(path: Path, folder: Path) -> int:
    while True:
        fd = os.open(path, _FLAGS, 0o666)
        try:
            _lock(fd, folder)
            if _is_at(fd, path):
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its owner removed it between the two: it locks nothing


def _lock(fd: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (EACCES, EAGAIN):  # no locks on this file system
            return
        owner = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
        msg = (
            f"Another process{f' ({owner})' if owner else ''} is writing the dump in {folder}. "
            "Wait for its end, or choose another dump_path."
        )
        raise DumpWriteError(msg) from error


def _release(fd: int, path: Path) -> None:
    with suppress(OSError):  # the folder may be gone
        if _is_at(fd, path):
            path.unlink()
    os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def _forget_all() -> None:
    global _sharing
    _sharing = threading.Lock()  # a thread that is not in this process may have had the other
    _shared.clear()
    for lock in tuple(_locks):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
