"""Measure how much more memory a dumped `generate()` needs than a plain one.

    python benchmarks/memory.py W1 tensors both naive

The model is built once; each variant then runs in a process of its own, forked from there, whose
peak of resident memory counts. Prints the bytes more than the plain model's as JSON.
"""

import json
import multiprocessing
import resource
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from rounds import temporary_folder
from transformers import PreTrainedModel
from variants import armed
from workloads import KNOWN, Workload


def main() -> None:
    """Measure the variants named on the command line."""
    name, *variants = sys.argv[1:]
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    workload = KNOWN[name]
    model = workload.build()
    peaks = {variant: peak(model, workload, variant) for variant in (None, *variants)}
    plain = peaks.pop(None)
    print(json.dumps({variant: found - plain for variant, found in peaks.items()}))


def extra_peaks(workload: Workload, variants: Sequence[str]) -> dict[str, int]:
    """Run this file in a fresh process; return the bytes that each variant needs more."""
    command = [sys.executable, str(Path(__file__)), workload.name, *variants]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak(model: PreTrainedModel, workload: Workload, variant: str | None) -> int:
    """Return the peak of a forked process that generates once."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_generate, args=(model, workload, variant, there))
    child.start()
    there.close()
    try:
        found: int = here.recv()
    finally:
        child.join()
    return found


def _generate(
    model: PreTrainedModel, workload: Workload, variant: str | None, result: Connection
) -> None:
    torch.set_num_threads(workload.threads)
    if variant is None:
        workload.generate(model)
    else:
        with temporary_folder() as folder, armed(model, variant, folder / "dump"):
            workload.generate(model)
    unit = 1 if sys.platform == "darwin" else 1024
    result.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


if __name__ == "__main__":
    main()
