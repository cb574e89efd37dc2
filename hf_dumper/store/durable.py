"""Names that are given last, and what `durable=True` adds to that.

A file is written under another name first. With `durable`, its bytes are on the disk before it gets
its name: after a loss of power a name never stands for a file that is empty or torn.
"""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_all(folder: Path) -> None:
    """Do the same for a folder, and for everything in it."""
    for where, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(where) / name)
        sync(Path(where))


def publish(unfinished: Path, path: Path, *, durable: bool = False) -> None:
    """Give a file that is written and closed its name, over what has it now."""
    if durable:
        sync(unfinished)
    unfinished.replace(path)
