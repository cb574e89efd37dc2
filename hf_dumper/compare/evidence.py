"""The smallest true description of how two tensors differ: where, and what was done there."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hf_dumper.compare.blocks import Segment, pieces
from hf_dumper.compare.hypotheses import Floats, Proof, prove
from hf_dumper.compare.metrics import Place, added_up, checked, measure
from hf_dumper.compare.moved import moved
from hf_dumper.compare.ranges import among, outliers

SAMPLE: Final = 1 << 18
"""Values that hypotheses are tried on: some milliseconds each."""
_UNEXPLAINED: Final = "different from the rest"


class Sample(NamedTuple):
    """Values of some positions, [positions, channels]; `is_part` if others were left out."""

    golden: Floats
    candidate: Floats
    is_part: bool


def explain(
    segments: Iterable[Segment], *, by_token: bool = True, rows: Sequence[int] = ()
) -> tuple[str, ...]:
    """Describe how two tensors differ, in sentences that the values prove.

    An effect is named only if undoing it leaves at most a quarter of the error; both errors are
    stated. Where the errors of one part are eight times those of the rest, only that part is looked
    at. Of large tensors an even sample is looked at, and the sentence says so.

    Args:
        segments: As for `measure`.
        by_token: As for `measure`; without it, neither positions nor channels are named.
        rows: The batch row of each segment, for the words; by default they are counted.
    """
    whole = checked(segments, by_token)
    names = list(rows) or list(range(len(whole)))
    found = measure(whole, by_token=by_token)
    if found.equal:
        return ("All values are equal." if found.elements else "There are no values.",)
    told = []
    if found.first_mismatch is not None:
        of = f", the first of {found.mask_mismatches}" if found.mask_mismatches > 1 else ""
        told.append(f"NaN or infinity {_place(found.first_mismatch, names)}{of}.")
    if found.worst is not None:
        told += _by_token(whole, names) if by_token else _by_value(whole)
        told.append(f"Largest difference {_place(found.worst, names)}.")
    return tuple(told)


def _place(place: Place, rows: Sequence[int]) -> str:
    where = f"at element {place.channel}"
    if place.position is not None:
        where = f"at row {rows[place.segment]}, position index {place.position}"
        where += f", channel {place.channel}"
    return f"{where}: golden {place.golden:.6g}, candidate {place.candidate:.6g}"


def _by_value(segments: Sequence[Segment]) -> Iterator[str]:
    """Yield what was done to tensors whose axes are unknown."""
    step = sum(golden.numel() for golden, _ in segments) // SAMPLE + 1
    cut = [piece for segment in segments for piece in pieces(segment, by_token=False)]
    columns = (
        torch.cat([side[0, ::step].to(torch.float64) for side in sides]).numpy()[:, None]
        for sides in ([piece.golden for piece in cut], [piece.candidate for piece in cut])
    )
    proof = prove(*_finite(*columns), np.arange(1))
    if proof is not None:
        yield _sentence("all values", proof, [], step > 1)


def _by_token(segments: Sequence[Segment], rows: Sequence[int]) -> Iterator[str]:
    """Yield which rows, positions and channels differ, and what was done to them."""
    sums, _ = added_up(segments, by_token=True)
    standing = outliers(sums.token_d, sums.token_g)
    chosen = sums.token_d > 0 if standing is None else standing.chosen
    counts = [len(golden) for golden, _ in segments]
    places = [np.flatnonzero(part) for part in np.split(chosen, np.cumsum(counts)[:-1])]
    words = "" if standing is None else _position_words(places, counts, rows)
    rest = [] if standing is None else [standing.elsewhere]
    proof = _moved(segments, places, rows)
    if proof is not None:
        yield _sentence(words or "all positions", proof, rest, sampled=False)
        return
    sample = _sample(segments, places)
    narrow = outliers(((sample.candidate - sample.golden) ** 2).sum(0), (sample.golden**2).sum(0))
    if narrow is None:
        proof = prove(sample.golden, sample.candidate, np.arange(sample.golden.shape[1]))
        if standing is not None and proof is None:
            proof = _unexplained(sample.golden, sample.candidate)
    else:
        rest.append(narrow.elsewhere)
        channels, proof = _narrowed(sample, np.flatnonzero(narrow.chosen))
        of = among("channel", channels, narrow.chosen.size)
        words = f"{of}, {words}" if words else of
    if proof is not None:
        yield _sentence(words or "all values", proof, rest, sample.is_part)


def _narrowed(sample: Sample, channels: NDArray[np.intp]) -> tuple[NDArray[np.intp], Proof]:
    """Return the channels that stand out, and what was done to them.

    Where golden values are next to nothing, so are their errors: if most of a range of channels
    stands out, and what was done to those explains the range, it is the range.
    """
    whole = np.arange(channels[0], channels[-1] + 1)
    proofs = [
        (some, prove(sample.golden[:, some], sample.candidate[:, some], some))
        for some in ([whole, channels] if whole.size <= 1.25 * channels.size else [channels])
    ]
    for some, proof in proofs:
        if proof is not None:
            return some, proof
    return channels, _unexplained(sample.golden[:, channels], sample.candidate[:, channels])


def _unexplained(golden: Floats, candidate: Floats) -> Proof:
    error = float(np.linalg.norm(candidate - golden) / (np.linalg.norm(golden) or 1.0))
    return Proof(_UNEXPLAINED, error, error)


def _position_words(
    places: Sequence[NDArray[np.intp]], counts: Sequence[int], rows: Sequence[int]
) -> str:
    """Return words for chosen positions: of whole rows, of every row alike, or of some."""
    hit = [i for i, some in enumerate(places) if some.size]
    whole = all(places[i].size == counts[i] for i in hit)
    names = among("row", np.array([rows[i] for i in hit])) if len(rows) > 1 else ""
    if whole:
        return names
    first = places[hit[0]]
    alike = all(np.array_equal(places[i], first) for i in hit)
    if not alike:
        total = sum(some.size for some in places)
        return f"{total} of {sum(counts)} positions, in {names}"
    positions = among("position index", first, counts[hit[0]])
    return f"{positions}, {names}" if names and len(hit) < len(rows) else positions


def _moved(
    segments: Sequence[Segment], places: Sequence[NDArray[np.intp]], rows: Sequence[int]
) -> Proof | None:
    """Tell whether the first row that differs has the values of elsewhere."""
    hit = [i for i, some in enumerate(places) if some.size]
    proofs = [moved(segments, i, places[i].tolist(), limit=SAMPLE, rows=rows) for i in hit]
    words = {proof.words if proof is not None else None for proof in proofs}
    return proofs[0] if len(words) == 1 else None


def _sample(segments: Sequence[Segment], places: Sequence[NDArray[np.intp]]) -> Sample:
    """Take an even sample of the chosen positions, of rows with as many channels as the first."""
    chosen = [(i, int(position)) for i, some in enumerate(places) for position in some]
    shape = segments[chosen[0][0]][0].shape[1:]
    alike = [(i, position) for i, position in chosen if segments[i][0].shape[1:] == shape]
    width = min(shape.numel(), SAMPLE)
    step = max(1, len(alike) * width // SAMPLE)
    sides = (
        torch.stack([segments[i][side][p].reshape(-1)[:width] for i, p in alike[::step]])
        for side in (0, 1)
    )
    golden, candidate = _finite(*(side.to(torch.float64).numpy() for side in sides))
    return Sample(golden, candidate, len(golden) < len(chosen) or width < shape.numel())


def _finite(golden: Floats, candidate: Floats) -> tuple[Floats, Floats]:
    """Return both sides with 0 where one is not finite."""
    both = np.isfinite(golden) & np.isfinite(candidate)
    return np.where(both, golden, 0.0), np.where(both, candidate, 0.0)


def _sentence(where: str, proof: Proof, rest: Sequence[float], sampled: bool) -> str:
    undone = "" if proof.words == _UNEXPLAINED else f", {proof.after:.3g} with that undone"
    elsewhere = f"; elsewhere at most {max(rest):.3g}" if rest else ""
    note = " (in an even sample)" if sampled else ""
    text = f"{where}: {proof.words}; relative error {proof.before:.3g}{undone}{elsewhere}{note}."
    return text[0].upper() + text[1:]
