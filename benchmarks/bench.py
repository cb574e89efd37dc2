"""Measure what dumping costs: plain, dumped and naively dumped runs in turn, many times.

    python benchmarks/bench.py [--workload W1 ...] [--mode tensors ...] [--pairs N] [--json FILE]
    python benchmarks/bench.py --quick

A ratio is that of a dumped run and of the plain one right beside it; the figure is the median over
the rounds. Index and `run.json` are written inside the measured time, nothing is synced to the
disk. Every dump that was timed is opened again and compared, record by record, with what plain
hooks saw in an identical run: a ratio from a wrong dump is void, and ends the program. Peak memory
is measured in processes of their own.

Without --workload, --mode and --quick all is measured, and kept in benchmarks/results/bench.json;
`python benchmarks/table.py` prints it again.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import machine
from memory import extra_peaks
from rounds import measure, summary
from table import RESULTS, markdown
from variants import MODES, NAIVE
from verify import VoidMeasurementError
from workloads import KNOWN, TINY, WORKLOADS


def main() -> None:
    """Measure what was asked for, print the table, keep the JSON."""
    arguments = _arguments()
    start = time.perf_counter()
    try:
        rows = [row for name in arguments.workload for row in _rows(name, arguments)]
    except VoidMeasurementError as error:
        sys.exit(f"The measurement is void. {error}")
    figures = {"machine": machine(), "rows": rows}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    print(markdown([figures]))
    print(f"\n{time.perf_counter() - start:.0f} s in all", file=sys.stderr)


def _rows(name: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    workload = KNOWN[name]
    modes = [mode for mode in MODES if mode in (arguments.mode or workload.aims)]
    variants = [*modes, NAIVE]
    rounds = arguments.pairs or workload.rounds
    print(f"{name}: {rounds} rounds of {', '.join(variants)}", file=sys.stderr)
    start = time.perf_counter()
    peaks = extra_peaks(workload, variants)
    costs = measure(workload, variants, rounds)
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    for variant, cost in costs.items():
        yield {**summary(workload, variant, cost), "peak_extra": peaks[variant]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", nargs="+", choices=KNOWN, help="default: all but tiny")
    parser.add_argument("--mode", nargs="+", choices=MODES, help="default: those with an aim")
    parser.add_argument("--pairs", type=int, help="rounds; default: as many as each workload says")
    parser.add_argument("--json", type=Path, help="file to keep the figures in")
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of a tiny model: does it all work?"
    )
    arguments = parser.parse_args()
    everything = not (arguments.workload or arguments.mode or arguments.quick)
    if everything and arguments.json is None:
        arguments.json = RESULTS
    if arguments.quick:
        arguments.pairs = arguments.pairs or TINY.rounds
    arguments.workload = arguments.workload or ([TINY.name] if arguments.quick else [*WORKLOADS])
    return arguments


if __name__ == "__main__":
    main()
