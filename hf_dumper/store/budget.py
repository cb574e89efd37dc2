"""A bound on the bytes of a dump: what is to be written is claimed first."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from hf_dumper.errors import DumpWriteError

COMMIT_BYTES: Final = 64 << 10
"""Set aside for the end of a run: footers of tables, which small runs have too, and its facts."""


class Budget:
    """The bytes that a dump may still take."""

    def __init__(self, most: int | None = None, used: int = 0) -> None:
        """Allow `most` bytes, None for any number; `used` are taken already."""
        self._most = most
        self._used = used

    @property
    def is_bounded(self) -> bool:
        """Whether there is a bound at all, so that it is worth a look at sizes."""
        return self._most is not None

    def claim(self, nbytes: int) -> None:
        """Take so many bytes.

        Raises:
            DumpWriteError: there are not so many left; none are taken then.
        """
        if self._most is not None and self._used + nbytes > self._most:
            msg = (
                f"max_bytes={self._most} is reached: {self._used} bytes are taken, "
                f"and {nbytes} more do not fit"
            )
            raise DumpWriteError(msg)
        self._used += nbytes


def bytes_in(folder: Path) -> int:
    """Return the bytes of all files below a folder; another session may rename some meanwhile."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(where) / name).lstat().st_size
    return total
