"""What a verification says, line by line."""

from collections.abc import Iterator
from typing import Final

from hf_dumper.report.numbers import plural, size
from hf_dumper.store.findings import DAMAGED, INCOMPLETE, INTACT, UNCHECKED, Verification

_OPENINGS: Final = {
    INTACT: "every record has the bytes that were written, and all files agree",
    INCOMPLETE: "what is there is intact",
    UNCHECKED: "nothing is wrong, but not all could be checked",
}


def opening(verification: Verification) -> str:
    """Return the sentence after the verdict."""
    if verification.verdict == DAMAGED:
        return plural(len(verification.problems), "problem")
    if verification.verdict == UNCHECKED and not verification.records:
        return "there are no records in this dump, so there is nothing to check"
    return _OPENINGS[verification.verdict]


def verification_lines(verification: Verification) -> Iterator[str]:
    """Yield the lines under the sentence: each problem, then what was checked and what was not."""
    yield from map(str, verification.problems)
    for run, why in verification.incomplete.items():
        yield f"run {run} is incomplete: {why}"
    yield (
        f"hashed: {verification.hashed:,} of {plural(verification.records, 'record')} in "
        f"{plural(len(verification.runs), 'run')}, {size(verification.bytes)} read"
    )
    if verification.weights:
        yield f"weights: {verification.weights:,} hashed"
    for why, count in verification.unchecked.items():
        yield f"not checked: {count:,}: {why}"
    if verification.skipped:
        yield f"skipped at capture: {plural(verification.skipped, 'record')}"
