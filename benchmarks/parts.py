"""Show where the time of one decode step goes when W1's tensors and statistics are dumped.

    python benchmarks/parts.py [--rounds 7]

What the model waits for is found by leaving parts out: each row is a decode step with one more part
than the row before, once with compiled hooks and once with those in Python; wrapped forwards show
what another way than torch's hooks would cost before it does anything. What the writer does
behind the model is timed where it is done, in processor time of its thread. Figures are medians of
the rounds; a decode step is what a generation of all tokens takes beyond one of a single token.
"""

import argparse
import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from transformers import PreTrainedModel
from workloads import WORKLOADS, Workload

from hf_dumper import DumpConfig, register_hook
from hf_dumper.capture.owners import Owners
from hf_dumper.core.compiled import PURE_PYTHON
from hf_dumper.store import BackgroundSink, run_writer
from hf_dumper.store.forward import ForwardTable
from hf_dumper.store.shards import ShardSet
from hf_dumper.store.tables import TableStream

BOTH = 2
"""The `dump_statistics_mode` that keeps tensors and statistics."""

BEHIND = {
    "hashes and aliases": (Owners, "resolve"),
    "shards": (ShardSet, "store"),
    "statistics": (run_writer, "describe_records"),
    "index: columns": (ForwardTable, "index"),
    "index and positions: written": (TableStream, "append"),
    "the writer, all in all": (run_writer.RunWriter, "write"),
}


def main() -> None:
    """Measure every part and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    workload = WORKLOADS["W1"]
    model = workload.build()
    steps: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, way in WAYS.items():
            with way(model):
                steps[name].append(decode_step(model, workload))
    plain = statistics.median(steps["plain model"])
    print(f"{'plain model':52} {1e3 * plain:7.2f} ms")
    for name, seconds in list(steps.items())[1:]:
        print(f"{name:52} {1e3 * (statistics.median(seconds) - plain):+7.2f} ms")
    print("\nbehind the model, processor time")
    for name, seconds in behind(model, workload, rounds).items():
        print(f"{name:52} {1e3 * statistics.median(seconds):7.2f} ms")


def decode_step(model: PreTrainedModel, workload: Workload) -> float:
    """Return the seconds of one decoded token."""
    whole = generate(model, workload, workload.tokens)
    return (whole - generate(model, workload, 1)) / (workload.tokens - 1)


def generate(model: PreTrainedModel, workload: Workload, tokens: int) -> float:
    """Return the seconds of one generation."""
    ids = torch.arange(1, workload.prompt + 1)[None]
    start = time.perf_counter()
    model.generate(
        ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    return time.perf_counter() - start


@contextmanager
def plain(_model: torch.nn.Module) -> Iterator[None]:
    """Leave the model alone."""
    yield


@contextmanager
def empty_hooks(model: torch.nn.Module) -> Iterator[None]:
    """Put a pair of hooks that do nothing on every module."""
    with ExitStack() as stack:
        for module in model.modules():
            stack.enter_context(module.register_forward_pre_hook(nothing, with_kwargs=True))
            stack.enter_context(module.register_forward_hook(nothing, with_kwargs=True))
        yield


@contextmanager
def wrapped_forwards(model: torch.nn.Module) -> Iterator[None]:
    """Call every module's forward through a function that does nothing else: no hooks."""
    modules = list(model.modules())
    for module in modules:
        module.forward = partial(through, module.forward)
    yield
    for module in modules:
        del module.forward


def through(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a forward."""
    return forward(*args, **kwargs)


def dumped(*left_out: tuple[Any, str, Any], pure: bool = False) -> Callable[[torch.nn.Module], Any]:
    """Return a way of dumping whose parts `left_out`, (owner, name, stand-in), do nothing."""

    @contextmanager
    def way(model: torch.nn.Module) -> Iterator[None]:
        with TemporaryDirectory(prefix="hf_dumper_parts_") as folder, ExitStack() as stack:
            stack.enter_context(patch.dict(os.environ, {PURE_PYTHON: "1" if pure else ""}))
            for owner, name, stand_in in left_out:
                stack.enter_context(patch.object(owner, name, stand_in))
            config = DumpConfig(Path(folder) / "dump", "all", dump_statistics_mode=BOTH)
            session = register_hook(model, config)
            yield
            with empty_allowed():
                session.close()

    return way


def behind(model: PreTrainedModel, workload: Workload, rounds: int) -> dict[str, list[float]]:
    """Return the processor seconds per decode step of what the writer's thread does."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        spent = {tokens: timed(model, workload, tokens) for tokens in (1, workload.tokens)}
        for name in BEHIND:
            more = spent[workload.tokens][name] - spent[1][name]
            found[name].append(more / (workload.tokens - 1))
    return found


def timed(model: PreTrainedModel, workload: Workload, tokens: int) -> dict[str, float]:
    """Dump one generation; return the processor seconds of each part in the writer's thread."""
    spent: dict[str, float] = defaultdict(float)
    model_thread = threading.get_ident()

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                if threading.get_ident() != model_thread:
                    spent[name] += time.thread_time() - start

        return call

    with ExitStack() as stack:
        for name, (owner, method) in BEHIND.items():
            stand_in = clocked(name, getattr(owner, method))
            stack.enter_context(patch.object(owner, method, stand_in))
        stack.enter_context(dumped()(model))
        generate(model, workload, tokens)
    return spent


def nothing(*_: Any) -> None:
    """Do nothing, as a hook."""


def drop(sink: BackgroundSink, batch: Any) -> None:
    """Give the chunks of a batch back and forget it."""
    for chunk in batch.spent:
        sink._arena.release(chunk)


@contextmanager
def empty_allowed() -> Iterator[None]:
    """Let a dump be empty: its parts were left out on purpose."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "EmptyDumpError":
            raise


NO_WRITER = (BackgroundSink, "write", drop)
WAYS: dict[str, Callable[[torch.nn.Module], Any]] = {
    "plain model": plain,
    "wrapped forwards, which we do not use": wrapped_forwards,
    "+ empty hooks on every module": empty_hooks,
    "+ hooks that copy, callbacks": dumped(NO_WRITER),
    "+ the writer": dumped(),
    "hooks in Python that copy, callbacks": dumped(NO_WRITER, pure=True),
    "hooks in Python, and the writer": dumped(pure=True),
}


if __name__ == "__main__":
    main()
