"""`datasets` at work: quiet, and its errors as one line of ours."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from hf_dumper.errors import PromptError
from hf_dumper.prompts.files import RAGGED


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what goes wrong while a source is read into a PromptError of one line."""
    try:
        with _quiet():
            yield
    except PromptError:
        raise
    except Exception as error:  # files of others, and the errors of many libraries
        msg = f"Cannot read {name}: {_reason(error)}"
        raise PromptError(msg) from error


def holds_nothing(error: BaseException) -> bool:
    """Tell whether `datasets` fails since a file is a list of nothing, or blank lines only."""
    return "corresponds to no data" in str(error) or "SchemaInference" in repr(error.__cause__)


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong; `datasets` hides it behind a message of its own."""
    cause = error.__cause__ if "An error occurred while generating" in str(error) else None
    told: BaseException = cause or error
    text = (str(told) or repr(told)).strip().splitlines()[0]
    if text.startswith(RAGGED):
        return "a row has more cells than the header. Put quotes around cells that hold commas."
    return text


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep `datasets` from telling about its work; a loss of data is an error."""
    from datasets.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    level, silent = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    if not silent:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=RAGGED)
            yield
    finally:
        logging.set_verbosity(level)
        if not silent:
            enable_progress_bars()
