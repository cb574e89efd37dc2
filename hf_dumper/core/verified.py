"""Speculative decoding as a dump tells it: which forward decided which tokens, in which columns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from hf_dumper.errors import DumpFormatError

DECIDED: Final = frozenset({"logits", "scores", "token_ids"})
"""Slots of the outermost module that hold what was chosen and from what: no input or output."""


class Verified(NamedTuple):
    """A verifying forward, the first token that it decided, its drafts, those it accepted.

    Its last `drafted` columns are drafts; with one column each before and in them, it decided
    `accepted + 1` tokens.
    """

    forward: int
    token: int
    drafted: int
    accepted: int

    @property
    def rejected(self) -> int:
        """Number of drafts that were not accepted."""
        return self.drafted - self.accepted

    def columns_after(self, token: int) -> int:
        """Return how many columns come after the one that decided a token."""
        return self.drafted - (token - self.token)


def verified_forwards(
    info: Mapping[str, Any],
    tokens: Mapping[int, int],
    columns: Mapping[int, tuple[int, int]],
) -> tuple[Verified, ...] | None:
    """Return the verifying forwards of a run; None without speculative decoding.

    `info` is what is known of the run. One that was cut off has no list of them: there they follow
    from the token of each forward and its (columns, rejected drafts).

    Raises:
        DumpFormatError: the list is damaged.
    """
    if not (info.get("prompt") or {}).get("drafter"):
        return None
    if "speculation" not in info:
        return tuple(_derived(tokens, columns))
    try:
        return tuple(Verified(*map(int, row)) for row in info["speculation"]["verified"])
    except (KeyError, TypeError, ValueError) as error:
        msg = f"The verifying forwards of run {info.get('run')} are damaged: {error!r}"
        raise DumpFormatError(msg) from error


def covering(forwards: Sequence[Verified], token: int) -> Verified | None:
    """Return the forward that decided a token, None where none did."""
    return next((v for v in forwards if v.token <= token <= v.token + v.accepted), None)


def _derived(
    tokens: Mapping[int, int], columns: Mapping[int, tuple[int, int]]
) -> Iterator[Verified]:
    """Yield them, but for a first forward without a next one, whose prompt has unknown length."""
    for forward, token in tokens.items():
        cols, rejected = columns.get(forward, (0, 0))
        if forward + 1 in tokens:
            accepted = tokens[forward + 1] - token - 1
        elif token:
            accepted = cols - 1 - rejected
        else:
            continue
        yield Verified(forward, token, accepted + rejected, accepted)
