"""How many bytes have arrived, over all transfers."""

import threading
from collections.abc import Callable
from typing import Any

OnBytes = Callable[[int, int], None]
"""Told of the bytes that have arrived, and of those there will be."""


class _Stopped(Exception):
    """Another file failed, or the user interrupts."""


class Counter:
    """Bytes of all files, and the way to stop their threads between two blocks."""

    def __init__(self, on_bytes: OnBytes | None = None, here: int = 0, total: int = 0) -> None:
        """Count up to `total` bytes, of which some are here; `received` are those that come."""
        self._tell, self._here, self._total = on_bytes, here, total
        self._lock = threading.Lock()
        self._stopped = False
        self.received = 0

    def add(self, nbytes: int) -> None:
        """Count bytes that have arrived."""
        if self._stopped:
            raise _Stopped
        with self._lock:
            self.received += nbytes
            if self._tell:
                self._tell(min(self._here + self.received, self._total), self._total)

    def stop(self) -> None:
        """Let the next block end its transfer."""
        self._stopped = True

    def bar(self) -> type:
        """Return what the client of the hub takes for a progress bar."""
        counter = self

        class Bar:
            def __init__(self, *_args: Any, **_kwargs: Any) -> None:
                pass

            def __enter__(self) -> "Bar":
                return self

            def __exit__(self, *_error: object) -> None:
                pass

            def close(self) -> None:
                pass

            def set_postfix_str(self, *_args: Any, **_kwargs: Any) -> None:
                pass

            def update(self, nbytes: float | None = 1) -> None:
                counter.add(int(nbytes or 0))

        return Bar
