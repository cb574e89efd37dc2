"""One process at a time writes a dump, or the processes of one launch together.

The lock belongs to an open file, so the system releases it when the process ends, however that
happens. Sessions of one process share it: each run has a folder of its own. A forked process has a
copy of the open file, which would keep the lock beyond our own end, so it is closed there.

The main process of a launch takes the lock alone, prepares the dump, and makes the lock a shared
one; the others join it by the mark in the file. Whoever wants it alone is refused until the last
of them has ended.

Where the system (Windows) or the file system has no such locks, a dump is not locked.
"""

import os
import socket
import threading
import uuid
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

_MARK_BYTES: Final = 512
_FLAGS: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


class DumpLock:
    """The right of this process to write a dump, for as long as something refers to it."""

    def __init__(self, folder: Path, mark: str | None = None) -> None:
        """Take the lock alone, or join the launch whose main process returned the mark.

        Raises:
            DumpWriteError: another process has it, or the launch has it no more.
            OSError: the folder cannot be written.
        """
        self._folder = folder
        self._path = folder.resolve() / LOCK
        self._fd = _taken(self._path, folder) if mark is None else _joined(self._path, folder, mark)
        self._end = finalize(self, _release, self._fd, self._path)
        _locks.add(self)

    @property
    def is_held(self) -> bool:
        """Whether the lock still is that of the folder, which somebody may have removed."""
        return self._end.alive and _is_at(self._fd, self._path)

    def share(self) -> str:
        """Let the other processes of this launch join, and return the mark that they need.

        Raises:
            DumpWriteError: another process took the dump at this very moment.
        """
        mark = f"{os.getpid()} on {socket.gethostname()}, launch {uuid.uuid4().hex}"
        _write(self._fd, mark)
        _lock(self._fd, self._folder, shared=True)
        _check_mark(self._fd, self._folder, mark)
        return mark

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


def join_dump(folder: Path, mark: str) -> DumpLock:
    """Return the lock of this process on a dump that the main process of its launch shares.

    Raises:
        DumpWriteError: the dump is not that launch's any more.
        OSError: the folder cannot be written.
    """
    with _sharing:
        lock = _shared[folder.resolve()] = DumpLock(folder, mark)
        return lock


def _taken(path: Path, folder: Path) -> int:
    """Open and lock the file, alone, and write into it who has it."""
    while True:
        fd = os.open(path, _FLAGS, 0o666)
        try:
            _lock(fd, folder)
            if _is_at(fd, path):
                _write(fd, f"{os.getpid()}")
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its owner removed it between the two: it locks nothing


def _joined(path: Path, folder: Path, mark: str) -> int:
    fd = os.open(path, _FLAGS & ~os.O_CREAT)
    try:
        _lock(fd, folder, shared=True)
        _check_mark(fd, folder, mark)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write(fd: int, owner: str) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{owner}\n".encode(), 0)


def _owner(fd: int) -> str:
    return os.pread(fd, _MARK_BYTES, 0).decode("utf-8", "replace").strip()


def _lock(fd: int, folder: Path, *, shared: bool = False) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (EACCES, EAGAIN):  # no locks on this file system
            return
        owner = _owner(fd).partition(",")[0]
        msg = (
            f"Another process{f' ({owner})' if owner else ''} is writing the dump in {folder}. "
            "Wait for its end, or choose another dump_path."
        )
        raise DumpWriteError(msg) from error


def _check_mark(fd: int, folder: Path, mark: str) -> None:
    if _owner(fd) != mark:
        msg = (
            f"The lock on {folder} is not that of the main process of this launch: it ended, or "
            "the machines do not see the same folder."
        )
        raise DumpWriteError(msg)


def _release(fd: int, path: Path) -> None:
    with suppress(OSError, DumpWriteError):  # the folder may be gone, or others still share it
        _lock(fd, path.parent)
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
