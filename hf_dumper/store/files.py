"""Small files written whole or not at all, and files that grow only by whole writes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from xxhash import xxh3_64

from hf_dumper.errors import DumpFormatError, DumpNotFoundError
from hf_dumper.store.durable import publish

TEMPORARY: Final = ".tmp"
"""Suffix of files that are being written; one that stays behind after a kill means nothing."""


def temporary(path: Path) -> Path:
    """Return the name under which `path` is written before it is renamed."""
    return path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")


def write_json(
    path: Path, value: Mapping[str, Any], *, durable: bool = False, room: int = 0
) -> None:
    """Replace a JSON file in one step; what JSON does not know is written as its text.

    With `room`, as many bytes of blanks follow, and the length of the text once more: `free_room`
    gives them back to a disk that is full by then.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    unfinished = temporary(path)
    blanks = " " * (room + len(text)) if room else ""
    unfinished.write_text(f"{text}{blanks}\n", encoding="utf-8", errors="backslashreplace")
    publish(unfinished, path, durable=durable)


def free_room(path: Path) -> None:
    """Cut the blanks off a JSON file."""
    os.truncate(path, len(path.read_bytes().rstrip()))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DumpNotFoundError: there is no such file.
        DumpFormatError: the file is damaged or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = f"{path} is missing."
        raise DumpNotFoundError(msg) from error
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path} is damaged: {error}"
        raise DumpFormatError(msg) from error
    if not isinstance(value, dict):
        msg = f"{path} is damaged: it holds {type(value).__name__}, not an object."
        raise DumpFormatError(msg)
    return value


def file_digest(path: Path) -> str:
    """Return the xxh3-64 of the bytes of a file, read block by block."""
    hasher = xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


class GrowingFile:
    """A file that grows by whole writes: what fails halfway is cut off again.

    Nothing is buffered, so that after a kill the file holds everything that was appended.
    """

    def __init__(self, path: Path, head: bytes = b"", flags: int = 0) -> None:
        """Create the file, which must not exist, with `head` as its first bytes.

        `flags` are those of the operating system, beyond what every such file needs.
        """
        self.path = path
        self.end = 0
        flags |= os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o666)
        try:
            self.append(memoryview(head))
        except BaseException:
            self.close()
            path.unlink()
            raise

    def append(self, view: memoryview) -> None:
        """Write bytes at the end of the file."""
        done = 0
        try:
            while done < view.nbytes:
                # Less than all: a signal, a full disk, or the 2 GiB that one call takes at most.
                done += os.pwrite(self._fd, view[done:], self.end + done)
        except BaseException:
            os.ftruncate(self._fd, self.end)
            raise
        self.end += done

    def overwrite(self, head: bytes) -> None:
        """Replace the first bytes of the file."""
        done = 0
        while done < len(head):
            done += os.pwrite(self._fd, head[done:], done)

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
