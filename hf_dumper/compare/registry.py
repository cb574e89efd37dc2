"""Metrics of the user's own: from an installed package, or from a function in a file."""

import math
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch

from hf_dumper.compare.blocks import Segment
from hf_dumper.core.registry import Registry
from hf_dumper.errors import ConfigError


class Metric(Protocol):
    """A number made of two vectors of float64: golden and candidate, the finite places only."""

    def __call__(self, golden: torch.Tensor, candidate: torch.Tensor, /) -> float:
        """Return the number."""


@dataclass(frozen=True, slots=True)
class CustomMetric:
    """A metric with its name, and which way is better."""

    name: str
    function: Metric
    higher_is_better: bool = False

    def __call__(self, golden: torch.Tensor, candidate: torch.Tensor, /) -> float:
        """Return the number."""
        return self.function(golden, candidate)


CUSTOM: Final = Registry[CustomMetric]("metric", "hf_dumper.metrics")
"""The metrics of installed packages; an entry point of the group names a `CustomMetric`."""


def load_metric(spec: str) -> CustomMetric:
    """Return the metric that `file.py:function` or a registered name stands for.

    The function is given two float64 vectors and returns a number, of which less is better; a
    `CustomMetric` of that name in the file can say otherwise.

    Raises:
        ConfigError: there is no such file, function or name, or the file does not run.
    """
    path, colon, name = spec.rpartition(":")
    if not colon:
        return CUSTOM.get(spec)
    if not Path(path).is_file():
        msg = f"Cannot load the metric {spec!r}: there is no file {path!r}."
        raise ConfigError(msg)
    try:
        found = runpy.run_path(path).get(name)
    except Exception as error:  # whatever the user's file raises
        msg = f"Cannot load the metric {spec!r}: {type(error).__name__}: {error}"
        raise ConfigError(msg) from error
    if isinstance(found, CustomMetric):
        return found
    if not callable(found):
        msg = f"Cannot load the metric {spec!r}: {path!r} has no function {name!r}."
        raise ConfigError(msg)
    return CustomMetric(name, found)


def apply(metrics: Mapping[str, Metric], segments: Sequence[Segment]) -> dict[str, float | None]:
    """Return the number of each metric for a pair; None for NaN, or where no place is finite.

    Raises:
        ConfigError: a metric raises, or returns no number.
    """
    if not metrics:
        return {}
    both = (torch.cat([s[side].reshape(-1).double() for s in segments]) for side in (0, 1))
    golden, candidate = both
    finite = golden.isfinite() & candidate.isfinite()
    golden, candidate = golden[finite], candidate[finite]
    return {
        name: _number(name, metric, golden, candidate) if golden.numel() else None
        for name, metric in metrics.items()
    }


def _number(
    name: str, metric: Metric, golden: torch.Tensor, candidate: torch.Tensor
) -> float | None:
    try:
        number = float(metric(golden, candidate))
    except Exception as error:  # whatever the user's function raises
        msg = f"The metric {name!r} failed: {type(error).__name__}: {error}"
        raise ConfigError(msg) from error
    return None if math.isnan(number) else number
