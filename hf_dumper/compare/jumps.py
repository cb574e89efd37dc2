"""Growth of the error from layer to layer: a step far above the usual one is suspicious."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import pyarrow as pa

from hf_dumper.compare.limits import Limits, section

_LAYER: Final = re.compile(r"(?:(.*)\.)?(\d+)")
_OUTPUTS: Final = ("output", "output.0")
_WORTH_A_LOOK: Final = 0.25
"""Share of the limit below which no error is large enough for its growth to matter."""

Series = list[tuple[int, int, float]]
"""Layer, row of the results, `rel_l2`."""


def find_jumps(results: pa.Table, levels: Mapping[int, int], limits: Limits) -> dict[int, str]:
    """Return the rows of the results whose error jumped, with the rule.

    A step is what a layer's output adds to the `rel_l2` of the layer before. It is held against the
    median step of the same forward, where there are layers enough to have one.
    """
    found = {}
    for run, series in _series(results):
        dtype = section(max(levels.get(run, 0), 0))
        table = limits[dtype]
        if len(series) < limits["few_layers"]:
            continue
        errors = np.array([error for _, _, error in series])
        steps = np.diff(errors)
        usual = float(np.median(np.abs(steps)))
        for i in np.flatnonzero(steps > table["jump"] * usual):
            if errors[i + 1] > _WORTH_A_LOOK * table["rel_l2"]:
                times = steps[i] / usual if usual else np.inf
                rule = f"rel_l2 grows {times:.3g} times the median step > {table['jump']:.3g}"
                found[series[i + 1][1]] = f"{rule} ({dtype})"
    return found


def _series(results: pa.Table) -> Iterator[tuple[int, Series]]:
    """Yield the run and the outputs of the layers of each forward and list of layers."""
    names = ("run", "forward", "module", "slot", "call", "rel_l2")
    columns = (results.column(name).to_pylist() for name in names)
    found: dict[tuple[int, int, str], Series] = {}
    for row, (run, forward, module, slot, call, error) in enumerate(zip(*columns, strict=True)):
        layer = _LAYER.fullmatch(module) if slot in _OUTPUTS and not call else None
        if layer is not None and error is not None:
            key = run, forward, layer[1] or ""
            found.setdefault(key, []).append((int(layer[2]), row, error))
    for (run, _, _), series in found.items():
        yield run, sorted(series)
