"""Which columns of a verifying forward decided which token, under speculative decoding."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_dumper.core.types import ROOT
from hf_dumper.errors import DumpFormatError, KeyNotFoundError
from hf_dumper.store.assemble import POS, ROW_POS, Extent, Part

_DECIDED: Final = frozenset({"logits", "scores", "token_ids"})
"""Slots of the outermost module that hold one value, or vocabulary, per token."""


class Verified(NamedTuple):
    """A verifying forward, the first token that it decided, its drafts, those it accepted."""

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


def verified_forwards(info: Mapping[str, Any]) -> tuple[Verified, ...]:
    """Return the verifying forwards that `run.json` lists.

    Raises:
        DumpFormatError: the list is damaged.
    """
    try:
        return tuple(Verified(*map(int, row)) for row in info["speculation"]["verified"])
    except (KeyError, TypeError, ValueError) as error:
        msg = f"The verifying forwards of run {info.get('run')} are damaged: {error!r}"
        raise DumpFormatError(msg) from error


def derived_forwards(index: pa.Table, positions: pa.Table) -> Iterator[Verified]:
    """Yield the verifying forwards of a run that was cut off, as far as its tables tell.

    The first forward is left out when there is no second: what of it is prompt is not known.
    """
    columns = (index.column(name).to_pylist() for name in ("forward", "token"))
    tokens = dict(zip(*columns, strict=True))
    places = np.asarray(positions.column("forward").to_numpy())
    values = np.asarray(positions.column("position").fill_null(-1).to_numpy())
    for forward, token in tokens.items():
        here = values[places == forward]
        rejected = int((here < -1).sum())
        if forward + 1 in tokens:
            accepted = tokens[forward + 1] - token - 1
        elif token:
            accepted = here.size - 1 - rejected
        else:
            continue
        yield Verified(forward, token, accepted + rejected, accepted)


def covering(forwards: Sequence[Verified], token: int) -> Verified | None:
    """Return the forward that decided a token, None where none did."""
    return next((v for v in forwards if v.token <= token <= v.token + v.accepted), None)


def ending_at(part: Part, module: str, slot: str, after: int, what: str) -> Part:
    """Leave out the last `after` columns; what has no position axis stays whole.

    What the outermost module decided loses that axis, so that it is like that of any forward.

    Raises:
        KeyNotFoundError: there are not so many columns.
    """
    tensor, axes = part.tensor, part.axes.split(",") if part.axes else []
    along = [i for i, axis in enumerate(axes) if axis in (POS, ROW_POS)]
    if not along:
        return part
    for axis in along:
        if tensor.shape[axis] <= after:
            msg = f"{what} has {tensor.shape[axis]} columns only; pass forward={part.forward}."
            raise KeyNotFoundError(msg)
        tensor = tensor.narrow(axis, 0, tensor.shape[axis] - after)
    extent = part.extent and Extent(part.extent.rows, part.extent.cols - after)
    if module == ROOT and slot in _DECIDED:
        tensor = tensor.select(along[0], -1)
        del axes[along[0]]
    return Part(part.forward, ",".join(axes), tensor, extent)


def rejected_columns(positions: pa.Table) -> dict[int, int]:
    """Return the number of rejected drafts of each forward whose positions are known."""
    known = positions.filter(pc.is_valid(positions.column("position")))
    rejected = pc.less(known.column("position"), -1).cast(pa.int64())
    table = pa.table({"forward": known.column("forward"), "rejected": rejected})
    found = table.group_by("forward").aggregate([("rejected", "sum")]).to_pydict()
    return dict(zip(found["forward"], found["rejected_sum"], strict=True))
