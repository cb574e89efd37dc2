"""Show where the cost of dumping W1's tensors goes, by leaving parts out.

    python benchmarks/parts.py [--rounds 7]

Each row is a `generate()` with one more part of the work than the row before, the last two with the
hooks that are not compiled; the figure is the median of the rounds, less that of the plain model.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from workloads import WORKLOADS

from hf_dumper import DumpConfig, register_hook
from hf_dumper.core.compiled import PURE_PYTHON
from hf_dumper.store import BackgroundSink


def main() -> None:
    """Measure every part and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    workload = WORKLOADS["W1"]
    model = workload.build()
    ids = torch.randint(1, model.config.vocab_size, (1, workload.prompt))

    def generate() -> float:
        start = time.perf_counter()
        model.generate(
            ids, max_new_tokens=workload.tokens, min_new_tokens=workload.tokens, pad_token_id=0
        )
        return time.perf_counter() - start

    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        times.setdefault("plain model", []).append(generate())
        times.setdefault("+ empty hooks on every module", []).append(empty_hooks(model, generate))
        for name, left_out in PARTS.items():
            times.setdefault(name, []).append(dumped(model, generate, left_out))
        with patch.dict(os.environ, {PURE_PYTHON: "1"}):
            for name, left_out in PARTS.items():
                key = f"{name}, in Python"
                times.setdefault(key, []).append(dumped(model, generate, left_out))
    plain = statistics.median(times["plain model"])
    for name, seconds in times.items():
        print(f"{name:58} {1000 * (statistics.median(seconds) - plain):6.1f} ms")
    print(f"{'plain model':58} {1000 * plain:6.1f} ms in all")


def empty_hooks(model: torch.nn.Module, generate: Callable[[], float]) -> float:
    """Time the model with a pair of hooks per module that do nothing."""
    with ExitStack() as stack:
        for module in model.modules():
            stack.enter_context(module.register_forward_pre_hook(nothing, with_kwargs=True))
            stack.enter_context(module.register_forward_hook(nothing, with_kwargs=True))
        return generate()


def dumped(
    model: torch.nn.Module, generate: Callable[[], float], left_out: list[tuple[Any, str, Any]]
) -> float:
    """Time a dump whose parts `left_out`, as (owner, name, replacement), are replaced."""
    with TemporaryDirectory(prefix="hf_dumper_parts_") as folder, ExitStack() as stack:
        for owner, name, replacement in left_out:
            stack.enter_context(patch.object(owner, name, replacement))
        session = register_hook(model, DumpConfig(Path(folder) / "dump", "all"))
        seconds = generate()
        with ignored():
            session.close()
    return seconds


def nothing(*_: Any) -> None:
    """Do nothing, as a hook or in the place of a part."""


def drop(sink: BackgroundSink, batch: Any) -> None:
    """Give the chunks of a batch back and forget it."""
    for chunk in batch.spent:
        sink._arena.release(chunk)


@contextmanager
def ignored() -> Iterator[None]:
    """Let a dump be empty: its parts were left out on purpose."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "EmptyDumpError":
            raise


NO_WRITER = [(BackgroundSink, "write", drop)]
PARTS = {
    "+ hooks that copy, callbacks, opening the run": NO_WRITER,
    "+ writing: hashes, aliases, shards, index": [],
}


if __name__ == "__main__":
    main()
