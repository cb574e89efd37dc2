"""An assertion for tests: two dumps agree."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from hf_dumper.comparison import compare
from hf_dumper.core.protocols import DumpReader
from hf_dumper.report.words import message


def assert_aligned(
    golden: str | PathLike[str] | DumpReader,
    candidate: str | PathLike[str] | DumpReader,
    *,
    limits: str | PathLike[str] | Mapping[str, Any] | None = None,
) -> None:
    """Compare two dumps, paths or readers, and raise unless all was compared and agrees.

    Raises:
        AssertionError: with the verdict as its message: where first, how sure, why, the evidence,
            and Python that shows the two tensors.
    """
    found = compare(golden, candidate, limits=limits)
    if not found.passed:
        raise AssertionError(message(found))
