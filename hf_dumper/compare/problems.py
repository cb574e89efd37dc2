"""Reasons why two records that belong together have no numbers."""

from typing import Final

from hf_dumper.compare.pairs import Problem
from hf_dumper.compare.records import Rec
from hf_dumper.core.types import SKIPPED
from hf_dumper.core.verdicts import Verdict

SKIPPED_BY: Final = "skipped it: "
"""Part of the reason of every pair that one side did not capture."""

OTHER_MASKS: Final = (
    "a mask of two axes against one of four, which generate() makes of it for a static cache; the "
    "positions of both sides tell what is masked"
)

NO_AXES: Final = (
    "nothing says which axis is row and which is position, and the forwards of the two sides hold "
    "other rows or columns"
)


DRAFTS: Final = "its values take in rejected drafts, which may be others on the two sides"


def skipped_by_either(record: Rec, partner: Rec) -> Problem | None:
    """Return that a side did not capture the values, None where both did."""
    for side, one in (("golden dump", record), ("candidate", partner)):
        if one.status == SKIPPED:
            return skipped(side, one)
    return None


def skipped(side: str, record: Rec) -> Problem:
    """Return that a side did not capture the values of a record."""
    reason = record.reason or "no reason is recorded"
    return Problem(Verdict.NOT_COMPUTABLE, f"the {side} {SKIPPED_BY}{reason}")


def other_shapes(record: Rec, partner: Rec, *, known: bool) -> Problem:
    """Return that shapes differ: a fault where nothing but the model decides about them."""
    shapes = f"{list(record.shape)} against {list(partner.shape)}"
    if known:
        return Problem(Verdict.SHAPE, shapes)
    reason = f"{shapes}, in forwards of other rows or columns"
    return Problem(Verdict.NOT_COMPUTABLE, reason)
