"""Which axis of a tensor runs over the keys: the columns, cached ones included, attended to."""

from typing import NamedTuple

import numpy as np

from hf_dumper.compare.pairs import is_mask
from hf_dumper.compare.places import Ints, RowPlaces
from hf_dumper.compare.plans import Planner, Stretch, common_keys
from hf_dumper.compare.records import Rec, RunRecords
from hf_dumper.compare.views import Shape
from hf_dumper.core.axes import OTHER, POS, ROW


class Keys(NamedTuple):
    """Number of the key axis among the channels, and its stretches that hold equal positions."""

    axis: int
    stretches: list[tuple[slice, slice]]


def find_keys(
    planner: Planner, stretch: Stretch, records: tuple[Rec, Rec], shapes: tuple[Shape, Shape]
) -> Keys | None:
    """Return the key axis of a golden record and its partner, None where there is none.

    An axis is one when its sizes are the numbers of keys so far, and these differ between the two
    sides, or the axis is seen to grow with them. Anything else of such a size holds channels.
    """
    golden, candidate = planner.places(stretch.match)
    record, partner = records
    counts = (
        golden.key_counts.get(record.forward, -1),
        candidate.key_counts.get(partner.forward, -1),
    )
    rooms = (
        is_mask(record) and planner.golden.has_room,
        is_mask(partner) and planner.runs[partner.run].has_room,
    )
    for place, axes in enumerate(zip(shapes[0].channels, shapes[1].channels, strict=False)):
        sizes = record.shape[axes[0]], partner.shape[axes[1]]
        found = zip(sizes, counts, rooms, strict=True)
        if not all(size == count or (room and size > count > 0) for size, count, room in found):
            continue
        keys = (
            _with_room(golden.keys(record.forward), sizes[0]),
            _with_room(candidate.keys(partner.forward), sizes[1]),
        )
        if _runs_over_keys(planner.golden, golden, records, axes, keys):
            return Keys(place, common_keys(*keys, stretch.match.end))
    return None


def _with_room(keys: Ints, size: int) -> Ints:
    """Return positions of keys for a mask over a static cache, whose room nobody filled yet."""
    return np.pad(keys, (0, size - keys.size), constant_values=-1)


def _runs_over_keys(
    run: RunRecords,
    places: RowPlaces,
    records: tuple[Rec, Rec],
    axes: tuple[int, int],
    keys: tuple[Ints, Ints],
) -> bool:
    record, partner = records
    if POS in (record.axes[axes[0]], partner.axes[axes[1]]) or keys[0].size != keys[1].size:
        return True
    if np.array_equal(*keys) and (keys[0] >= 0).all():
        return False  # whole or by keys is the same
    grows = _grows(run, places, record, axes[0])
    # Not seen to: the last axis of [row, heads, query, ...] does where the two sides differ.
    return (
        _is_last_of_heads(record, axes[0]) and not np.array_equal(*keys) if grows is None else grows
    )


def _grows(run: RunRecords, places: RowPlaces, record: Rec, axis: int) -> bool | None:
    """Tell whether an axis is as long as the keys in another forward; None if there is none."""
    count = places.key_counts[record.forward]
    for forward, other in places.key_counts.items():
        found = run.find(forward, record) if other != count else None
        if found is not None and len(found.shape) == len(record.shape):
            return found.shape[axis] == other
    return None


def varies(run: RunRecords, record: Rec, axis: int) -> bool:
    """Tell whether an axis has other sizes in other forwards of the run: it holds no channels."""
    if _is_last_of_heads(record, axis):
        return True  # as may be, where too few forwards were dumped to tell
    found = (run.find(forward, record) for forward in run.layouts)
    same = (one for one in found if one is not None and len(one.shape) == len(record.shape))
    return any(one.shape[axis] != record.shape[axis] for one in same)


def _is_last_of_heads(record: Rec, axis: int) -> bool:
    return len(record.axes) == 4 and axis == 3 and record.axes[:3] == (ROW, OTHER, POS)
