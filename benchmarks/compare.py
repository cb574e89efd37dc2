"""Measure how fast pairs of tensors are measured, with the compiled kernels and without.

    python benchmarks/compare.py [--rounds 7] [--json FILE]

Figures are for one core: GB of golden bytes per second of large tensors, microseconds per pair of
small ones. Every figure is the best of the rounds, since whatever else runs only adds time.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch

from hf_dumper.compare import kernels
from hf_dumper.compare.metrics import measure

LARGE, SMALL = (4096, 4096), (1, 1024)
SMALL_PAIRS = 1000
TYPES = {
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp16": (torch.float16, torch.float16),
    "fp32": (torch.float32, torch.float32),
    "fp32, bf16": (torch.float32, torch.bfloat16),
}


def main() -> None:
    """Measure everything, print the table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for compiled in (True, False):
        if compiled and not kernels.HAVE_KERNELS:
            print("The kernels were not built: only the plain way is measured.")
            continue
        with patch.object(kernels, "HAVE_KERNELS", compiled):
            rows += [measured(name, compiled, arguments.rounds) for name in TYPES]
    print_table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), "utf-8")


def measured(name: str, compiled: bool, rounds: int) -> dict[str, str | float]:
    """Return the figures of one pair of types."""
    large, equal = pair(name, LARGE), pair(name, LARGE, noise=0.0)
    small = pair(name, SMALL)
    gigabytes = large[0].nbytes / 1e9

    def many() -> None:
        for _ in range(SMALL_PAIRS):
            measure([small], by_token=True)

    return {
        "types": name,
        "way": "compiled" if compiled else "plain",
        "large_gb_per_s": gigabytes / best(lambda: measure([large], by_token=True), rounds),
        "equal_gb_per_s": gigabytes / best(lambda: measure([equal], by_token=True), rounds),
        "small_us": 1e6 * best(many, rounds) / SMALL_PAIRS,
    }


def pair(name: str, shape: tuple[int, int], noise: float = 0.01) -> tuple[torch.Tensor, ...]:
    """Return golden and candidate, which differ by relative noise."""
    golden, candidate = TYPES[name]
    generator = torch.manual_seed(0)
    values = torch.randn(shape, generator=generator)
    noisy = values * (1 + noise * torch.randn(shape, generator=generator))
    return values.to(golden), noisy.to(candidate)


def best(run: Callable[[], object], rounds: int) -> float:
    """Return the seconds of the fastest round."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def print_table(rows: list[dict[str, str | float]]) -> None:
    """Print the figures as a Markdown table."""
    print("| golden, candidate | way | 4096 x 4096, GB/s | equal, GB/s | 1 x 1024, us per pair |")
    print("|---|---|--:|--:|--:|")
    for row in rows:
        figures = (
            f"{row['large_gb_per_s']:.2f} | {row['equal_gb_per_s']:.2f} | {row['small_us']:.0f}"
        )
        print(f"| {row['types']} | {row['way']} | {figures} |")


if __name__ == "__main__":
    main()
