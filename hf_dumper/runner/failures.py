"""The rows that no run could be made of, noted in the dump by any number of processes."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hf_dumper.errors import PromptError
from hf_dumper.store.layout import FAILURES
from hf_dumper.store.run_sink import writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_MOST: Final = 2000
"""Characters of an error that are kept."""


@dataclass(frozen=True, slots=True)
class RowFailure:
    """A row that no run could be made of, and why; `time` is in UTC, as ISO 8601 writes it."""

    row: int
    error: str
    time: str

    @classmethod
    def of(cls, row: int, error: Exception) -> "RowFailure":
        """Return the failure of a row now, on one line."""
        ours = isinstance(error, PromptError)
        text = " ".join((str(error) if ours else f"{type(error).__name__}: {error}").split())
        text = text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."
        return cls(row, text, f"{datetime.now(UTC):%FT%TZ}")


def note_failure(dump: Path, failure: RowFailure) -> None:
    """Append a line to `failures.jsonl`, which other processes append to at the same time.

    A line is one write to a file that is open for appending, so that lines do not mix on one
    machine; the lock does the same between machines. A line that a kill cut off stays by itself.

    Raises:
        DumpWriteError: the folder cannot be written.
    """
    line = f"{json.dumps(asdict(failure))}\n".encode()
    with writing(dump), (dump / FAILURES).open("a+b", buffering=0) as file:
        if fcntl is not None:
            with suppress(OSError):  # no locks on this file system
                fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file.fileno()).st_size
        is_cut = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write(b"\n" + line if is_cut else line)
