"""Waiting for a hub that is busy or away, and no longer than it is worth."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar

from hf_dumper.errors import HubError

T = TypeVar("T")

_PASSING: Final = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that say nothing about the request, so that it may be made again."""

_FINAL: Final = ("OfflineModeIsEnabled", "ProxyError", "UnsupportedProtocol")


class TransferError(Exception):
    """Bytes arrived that are not those of the file; asking again may help."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often something is tried, and how long is waited in between.

    Attributes:
        attempts: Times that it is tried in all.
        first: Seconds before the second time; each later wait is twice as long.
        most: Seconds that no such wait exceeds.
        longest: Seconds up to which the hub may send us away (Retry-After); beyond, we give up.
        sleep: What waits; takes seconds.
        tell: Told of each wait, in one line.
    """

    attempts: int = 6
    first: float = 1.0
    most: float = 30.0
    longest: float = 300.0
    sleep: Callable[[float], None] = lambda seconds: time.sleep(seconds)
    tell: Callable[[str], None] = lambda _line: None

    def run(self, call: Callable[[], T]) -> T:
        """Return what the call returns, calling again after an error that may pass.

        Raises:
            HubError: the hub asks to wait longer than `longest`.
            Exception: what the call raised last.
        """
        for attempt in range(1, self.attempts):
            try:
                return call()
            except Exception as error:
                reason = passing(error)
                if reason is None:
                    raise
                self._wait(attempt, reason, error)
        return call()

    def _wait(self, attempt: int, reason: str, error: Exception) -> None:
        asked = retry_after(error)
        seconds = min(self.first * 2 ** (attempt - 1), self.most) if asked is None else asked
        if seconds > self.longest:
            msg = f"The hub says {reason}, and to come back in {seconds:.0f} s. Try again then."
            raise HubError(msg) from error
        self.tell(f"{reason}: trying again in {seconds:g} s ({attempt} of {self.attempts - 1})")
        self.sleep(seconds)


def passing(error: BaseException) -> str | None:
    """Return in a few words what went wrong, None if it would go wrong again."""
    found: str | None = None
    for one in chain_of(error):
        names = {base.__name__ for base in type(one).__mro__}
        if names.intersection(_FINAL):
            return None
        if isinstance(one, TransferError):
            found = found or str(one)
        elif (status := status_of(one)) is not None:
            if status not in _PASSING:
                return None
            found = found or f"HTTP status {status}"
        elif "TransportError" in names:  # of httpx, under whichever name the hub's client has it
            found = found or f"{type(one).__name__}: {one}".removesuffix(": ")
    return found


def retry_after(error: BaseException) -> float | None:
    """Return the seconds that the hub asks to wait, None if it says nothing of it."""
    for one in chain_of(error):
        headers = getattr(getattr(one, "response", None), "headers", None)
        if headers is not None and (seconds := _asked(headers)) is not None:
            return seconds
    return None


def _asked(headers: Any) -> float | None:
    from huggingface_hub.utils import parse_ratelimit_headers

    text = str(headers.get("Retry-After") or "").strip()
    if text.isdecimal():
        return float(text)
    if text:
        try:
            until = parsedate_to_datetime(text)
        except ValueError:
            return None
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error, None if it has none."""
    return getattr(getattr(error, "response", None), "status_code", None)


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
