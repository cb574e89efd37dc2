"""A hub as we ask it: which address, with which token, how patiently; and errors in one line."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, TypeVar

from hf_dumper.errors import HFDumperError, HubError
from hf_dumper.hub.names import RepoName
from hf_dumper.hub.retry import Patience, TransferError, chain_of, passing, status_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

MIRRORS: Final = {"hf-mirror": "https://hf-mirror.com"}
"""Words for mirrors, and their addresses."""

_OFFICIAL: Final = "https://huggingface.co"

_BLOCK: Final = 1 << 20
"""Bytes that are written at once; what a cut costs at most."""


@dataclass(frozen=True)
class Hub:
    """A hub or a mirror.

    Attributes:
        address: `https://...`, a word of `MIRRORS`, or None: `HF_ENDPOINT`, else the hub itself.
        token: For gated and private repositories. None takes the one that is logged in with, but
            never sends it to an address that was given here.
        patience: How often something that may pass is tried again.
    """

    address: str | None = None
    token: str | None = None
    patience: Patience = field(default_factory=Patience)

    @cached_property
    def endpoint(self) -> str:
        """The address that is asked.

        Raises:
            HubError: it is none.
        """
        from huggingface_hub import constants

        given = self.address or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
        url = MIRRORS.get(given, given).rstrip("/")
        if not url.startswith(("https://", "http://")):
            msg = f"{given!r} is no address of a hub: write https://..., or {', '.join(MIRRORS)}."
            raise HubError(msg)
        return url

    @cached_property
    def own_token(self) -> str | bool | None:
        """What the client is given as its token; False is none at all."""
        from huggingface_hub import constants

        return self.token or (None if self.endpoint == constants.ENDPOINT else False)

    @cached_property
    def api(self) -> "HfApi":
        """The client."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.own_token, library_name="hf_dumper")

    @cached_property
    def uses_xet(self) -> bool:
        """Whether contents come by the xet protocol, whose servers no mirror stands for."""
        from huggingface_hub import constants

        installed = find_spec("hf_xet") is not None and not constants.HF_HUB_DISABLE_XET
        return installed and self.endpoint == _OFFICIAL

    def ask(self, repo: RepoName, call: Callable[[], T]) -> T:
        """Return what a call of the client returns, patiently.

        Raises:
            HubError: one line that says why not.
        """
        try:
            return self.patience.run(call)
        except HFDumperError:
            raise
        except Exception as error:
            reason = explain(error, self, repo)
            if reason is None:
                raise
            raise HubError(reason) from error

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Set the client of the hub up while contents travel; for one thread at a time.

        It knows these settings of the whole process only. Without smaller blocks a connection that
        is always cut off before 10 MB would never get on.
        """
        from huggingface_hub import constants

        before = constants.HF_HUB_DISABLE_XET, constants.DOWNLOAD_CHUNK_SIZE
        constants.HF_HUB_DISABLE_XET = not self.uses_xet
        constants.DOWNLOAD_CHUNK_SIZE = _BLOCK
        try:
            with _heard(self.patience.tell):
                yield
        finally:
            constants.HF_HUB_DISABLE_XET, constants.DOWNLOAD_CHUNK_SIZE = before


@contextmanager
def _heard(tell: Callable[[str], None]) -> Iterator[None]:
    """Pass on what the client logs: it waits by itself in places, for as long as a hub says."""
    logger = logging.getLogger("huggingface_hub")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: tell(" ".join(record.getMessage().split()))  # type: ignore[method-assign]
    before = logger.level, logger.propagate, logger.handlers
    logger.propagate, logger.handlers = False, [handler]
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.propagate, logger.handlers = before[1:]
        logger.setLevel(before[0])


def explain(error: BaseException, hub: Hub, repo: RepoName) -> str | None:
    """Return in one line what an error means; None if it is none of the hub, network or disk."""
    for one in chain_of(error):
        if isinstance(one, OSError) and one.errno in (ENOSPC, EDQUOT):
            return f"The disk is full at {one.filename or 'the cache'}. {_KEPT}"
    for name, meaning in _MEANINGS.items():
        if any(name in {b.__name__ for b in type(e).__mro__} for e in chain_of(error)):
            return f"{repo}: {meaning.format(hub=hub.endpoint, revision=repo.revision)}"
    status = next(filter(None, map(status_of, chain_of(error))), None)
    if status in (401, 403):
        return f"{repo}: {hub.endpoint} does not allow it (HTTP status {status}): check --token."
    if isinstance(error, TransferError):
        return f"{repo}: {error}"
    if (reason := passing(error)) is not None:
        tried = hub.patience.attempts
        return (
            f"{repo}: {hub.endpoint} cannot be reached or is busy, {tried} times: {reason}. {_KEPT}"
        )
    return None if status is None else f"{repo}: {hub.endpoint} answers with HTTP status {status}."


_KEPT: Final = "What has arrived is kept: the same command goes on from there."

_MEANINGS: Final = {
    "GatedRepoError": "it is gated: accept its terms on its page, then give --token or log in "
    "with `hf auth login`.",
    "RepositoryNotFoundError": "{hub} has no such repository, or it is private: check the name, "
    "or give --token.",
    "RevisionNotFoundError": "it has no revision {revision!r}.",
    "RemoteEntryNotFoundError": "a file that it lists is not there.",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set, and not all of it is in the cache.",
    "HFValidationError": "that is no name of a repository.",
}
