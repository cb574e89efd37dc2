"""Exit statuses, and errors as one line that says what to do.

0 done and passed, 1 done but failed or incomplete, 2 could not be done.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Final

import typer

from hf_dumper.errors import HFDumperError, LaunchError
from hf_dumper.hub.retry import chain_of
from hf_dumper.launch import is_main_process

DONE, FAILED, IMPOSSIBLE = 0, 1, 2

NAME: Final = "hf-dumper"

DEBUG: Final = "HF_DUMPER_DEBUG"
"""Environment variable: 1 shows the traceback of every error."""

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Base of what is wrong with arguments. Newer releases of typer have click inside, older beside."""

_HUB: Final = {
    "GatedRepoError": (
        "the repository is gated: accept its terms on its page, then log in with `hf auth login`"
    ),
    "RepositoryNotFoundError": (
        "the hub has no such repository, or it is private: check the name, or `hf auth login`"
    ),
    "RevisionNotFoundError": "the repository has no such revision",
    "LocalEntryNotFoundError": "the hub cannot be reached, and there is no copy in the cache",
    "EntryNotFoundError": "the repository lacks a file that is needed",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set, and there is no copy in the cache",
    "ConnectError": "the hub cannot be reached",
    "ConnectTimeout": "the hub cannot be reached",
    "ReadTimeout": "the hub does not answer",
    "HfHubHTTPError": "the hub answers with an error; try again later",
}
"""Class of an error of the hub -> what it means; the first in this order that is found is told."""


def status_of(app: typer.Typer, args: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name and return its exit status."""
    given = None if args is None else list(args)
    try:
        status = app(given, prog_name=NAME, standalone_mode=False)
    except _UsageError as error:
        if is_main_process():
            print(_usage(error), file=sys.stderr)
        return IMPOSSIBLE
    return status if isinstance(status, int) else DONE


def guarded(command: Callable[..., int]) -> Callable[..., int]:
    """Let a command tell its errors on stderr, a line each, and return the status for them.

    This happens inside of typer, which has its own way with interrupts and closed pipes.
    """

    @wraps(command)
    def told(*args: Any, **kwargs: Any) -> int:
        try:
            status = command(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DONE
        except (Exception, KeyboardInterrupt) as error:
            _tell(error)
            return IMPOSSIBLE
        return status

    return told


def _tell(error: BaseException) -> None:
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, LaunchError) and not is_main_process():
        return  # the main process knows, and tells it
    print(f"{NAME}: {explain(error)}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)


def explain(error: BaseException) -> str:
    """Return one line for an error."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted."
    if isinstance(error, HFDumperError):
        return one_line(str(error))
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"{error.filename or 'a file'}: {error.strerror}.")
    if type(error).__name__ == "OutOfMemoryError":
        return "the accelerator is out of memory. Try --statistics statistics, or a smaller model."
    told = one_line(f"{type(error).__name__}: {error}").removesuffix(":")
    return f"{told} ({DEBUG}=1 shows where)"


def hub_reason(error: BaseException) -> str | None:
    """Return what an error of the hub means, also a wrapped one; None if it is none."""
    found = {base.__name__ for e in chain_of(error) for base in type(e).__mro__}
    return next((meaning for name, meaning in _HUB.items() if name in found), None)


def one_line(text: str, most: int = 400) -> str:
    """Return a text without line breaks, cut where nobody would read on."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most - 3]}..."


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", None) or NAME
    told = one_line(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
    return f"{command}: {told}. See {command} --help."
