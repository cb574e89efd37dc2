"""Interleaved rounds: every measured run has a run of the plain model right beside it."""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from variants import MODES, NAIVE, armed
from verify import VoidMeasurementError, read, verify
from witness import Testimony, watch
from workloads import Workload

from hf_dumper.store.direct import grow

RAW_BYTES = 1 << 20
"""Bytes that the raw write hands over at a time."""


@dataclass(slots=True)
class Costs:
    """What a variant cost in each round, in seconds, and what it left on disk.

    `raw_write` is a write of as many bytes, by the class that hf_dumper writes with and nothing
    beside it. `reading` opens the dump again and reads all of it. Both are None for the baseline.
    """

    ratios: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    dumped: list[float] = field(default_factory=list)
    reading: list[float] = field(default_factory=list)
    raw_write: list[float] = field(default_factory=list)
    records: int | None = None
    bytes: int = 0
    files: int = 0


def measure(workload: Workload, variants: Sequence[str], rounds: int) -> dict[str, Costs]:
    """Measure all variants of a workload, and verify every dump that was timed.

    Raises:
        VoidMeasurementError: a dump is not what the witness saw, or tokens changed.
    """
    torch.set_num_threads(workload.threads)
    model = workload.build()
    # The witness runs the model twice, so that no round is the first to meet these shapes.
    testimony = watch(model, lambda **options: workload.generate(model, **options))
    costs = {name: Costs() for name in variants}
    for number in range(rounds):
        for group in neighbours(variants, number):
            _run_group(model, workload, group, costs, testimony)
    return costs


def neighbours(variants: Sequence[str], number: int) -> Iterator[list[str | None]]:
    """Yield groups of two variants with the plain model, None, between them.

    A variant left over has the plain model to itself. From round to round the order rotates, and
    whether the plain model comes before or after.
    """
    turn = number % len(variants)
    rotated = [*variants[turn:], *variants[:turn]]
    for i in range(0, len(rotated), 2):
        first, *second = rotated[i : i + 2]
        group = [first, None, *second]
        yield group[::-1] if number % 2 else group


def _run_group(
    model: PreTrainedModel,
    workload: Workload,
    group: Sequence[str | None],
    costs: dict[str, Costs],
    testimony: Testimony,
) -> None:
    seconds = {name: _run(model, workload, name, costs, testimony) for name in group}
    plain = seconds.pop(None)
    for name, dumped in seconds.items():
        cost = costs[name]
        cost.ratios.append(dumped / plain)
        cost.plain.append(plain)
        cost.dumped.append(dumped)


def _run(
    model: PreTrainedModel,
    workload: Workload,
    name: str | None,
    costs: dict[str, Costs],
    testimony: Testimony,
) -> float:
    """Return the seconds of one `generate()`; look at what it wrote and throw it away."""
    if name is None:
        seconds, tokens = _timed(lambda: workload.generate(model))
        _check_tokens("plain", tokens, testimony)
        return seconds
    with temporary_folder() as folder:
        dump = folder / "dump"
        with armed(model, name, dump):
            seconds, tokens = _timed(lambda: workload.generate(model))
        _check_tokens(name, tokens, testimony)
        _look_at(dump, name, costs[name], testimony, tokens)
    return seconds


def _timed(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def _check_tokens(name: str, tokens: torch.Tensor, testimony: Testimony) -> None:
    if not torch.equal(tokens, testimony.tokens):
        msg = f"{name}: other tokens than the plain model's, or than in the round before."
        raise VoidMeasurementError(msg)


def _look_at(
    dump: Path, name: str, cost: Costs, testimony: Testimony, tokens: torch.Tensor
) -> None:
    """Note the size of a dump, read it, verify it, and write as many bytes without all that."""
    sizes = [path.stat().st_size for path in dump.rglob("*") if path.is_file()]
    cost.bytes, cost.files = sum(sizes), len(sizes)
    if name == NAIVE:
        return
    reading = read(dump)
    verify(reading, MODES[name], testimony, tokens)
    cost.records = len(reading.rows)
    cost.reading.append(reading.seconds)
    cost.raw_write.append(raw_write(cost.bytes, dump.with_name("raw")))


def raw_write(nbytes: int, path: Path) -> float:
    """Return the seconds that it takes to write so many bytes the way that a dump's are."""
    view = memoryview(bytes(torch.randint(256, (RAW_BYTES,), dtype=torch.uint8).numpy()))
    start = time.perf_counter()
    file = grow(path, b"")
    for done in range(0, nbytes, RAW_BYTES):
        file.append(view[: nbytes - done])
    file.close()
    return time.perf_counter() - start


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder and remove it with what is in it."""
    path = Path(tempfile.mkdtemp(prefix="hf_dumper_bench_"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def median(values: Sequence[float]) -> float | None:
    """Return the median, None where nothing was measured."""
    return statistics.median(values) if values else None


def summary(workload: Workload, name: str, cost: Costs) -> dict[str, Any]:
    """Return the figures of a variant, JSON-ready: medians, and the extremes of the ratio."""
    return {
        "workload": workload.name,
        "mode": name,
        "ratio": median(cost.ratios),
        "lowest": min(cost.ratios),
        "highest": max(cost.ratios),
        "ratios": cost.ratios,
        "aim": workload.aims.get(name),
        "plain": median(cost.plain),
        "dumped": median(cost.dumped),
        "records": cost.records,
        "bytes": cost.bytes,
        "files": cost.files,
        "reading": median(cost.reading),
        "raw_write": median(cost.raw_write),
    }
