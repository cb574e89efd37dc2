"""Measure what dumping costs: a dump and a plain `generate()` in turn, many times.

    python benchmarks/bench.py [--pairs 7] [--workload W1] [--mode tensors ...] [--json FILE]

Each pair runs the plain model and the dumped one back to back, in alternating order, in one
process; the figure is the median of the pairs' ratios. Index and `run.json` are written inside the
measured time, nothing is synced to the disk. Before it is timed, each mode's dump is compared with
clones that plain hooks made of an identical run: a ratio from a wrong dump is void.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from transformers import PreTrainedModel
from workloads import WORKLOADS, Workload
from xxhash import xxh3_64_intdigest

from hf_dumper import DumpConfig, open_dump, register_hook

MODES: dict[str, dict[str, Any]] = {
    "tensors": {"dump_statistics_mode": 0},
    "statistics": {"dump_statistics_mode": 1},
    "both": {"dump_statistics_mode": 2},
    "last-logits": {"dump_last_logits": True},
}


@dataclass(frozen=True, slots=True)
class Row:
    """What one mode of one workload cost; times in seconds, the ratio is dumped / plain."""

    workload: str
    mode: str
    ratio: float
    lowest: float
    highest: float
    plain: float
    dumped: float
    records: int
    bytes: int
    files: int


def main() -> None:
    """Measure the chosen workloads and modes, print a table, keep the JSON."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in arguments.workload:
        workload = WORKLOADS[name]
        model = workload.build()
        for mode in arguments.mode:
            rows.append(measure(model, workload, mode, arguments.pairs))
            print(_line(rows[-1]), flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps([asdict(row) for row in rows], indent=1))


def measure(model: PreTrainedModel, workload: Workload, mode: str, pairs: int) -> Row:
    """Measure one mode: verify its dump, then time `pairs` pairs."""
    inputs = torch.randint(1, model.config.vocab_size, (1, workload.prompt))

    def generate() -> torch.Tensor:
        return model.generate(
            inputs,
            max_new_tokens=workload.tokens,
            min_new_tokens=workload.tokens,
            do_sample=False,
            pad_token_id=0,
        )

    with _folder() as folder:
        dump = folder / "verified"
        with register_hook(model, DumpConfig(dump, "all", **MODES[mode])):
            generate()
        verify(model, generate, dump)
        records, nbytes, files = _sizes(dump)
    times = [_pair(model, generate, mode, i) for i in range(pairs)]
    ratios = [dumped / plain for plain, dumped in times]
    plain, dumped = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(ratios)
    return Row(
        workload.name, mode, ratio, min(ratios), max(ratios), plain, dumped, records, nbytes, files
    )


def verify(model: PreTrainedModel, generate: Callable[[], torch.Tensor], dump: Path) -> None:
    """Compare hashes, and values where there are any, with clones that plain hooks took."""
    clones: dict[tuple[int, str], torch.Tensor] = {}
    forward = -1

    def count(*_: object) -> None:
        nonlocal forward
        forward += 1

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: object, _args: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                clones[forward, name] = output.clone()

        return hook

    handles = [model.register_forward_pre_hook(count)]
    handles += [m.register_forward_hook(keep(n)) for n, m in model.named_modules() if n]
    generate()
    for handle in handles:
        handle.remove()
    columns = ["forward", "module", "token", "hash", "shard"]
    with open_dump(dump) as reader:
        index = reader.index()
        outputs = index.filter(pc.equal(index["slot"], "output")).select(columns)
        for row in outputs.to_pylist():
            clone = clones[row["forward"], row["module"]]
            same = row["hash"] == xxh3_64_intdigest(clone.contiguous().view(torch.uint8).numpy())
            if same and row["shard"]:
                same = torch.equal(reader.load(row["module"], token=row["token"]), clone)
            if not same:
                sys.exit(f"{row} is not what a plain hook sees: the measurement is void.")


def _pair(
    model: PreTrainedModel, generate: Callable[[], torch.Tensor], mode: str, number: int
) -> tuple[float, float]:
    with _folder() as folder:
        session = register_hook(model, DumpConfig(folder / "dump", "all", **MODES[mode]))
        with session.pause():
            generate()  # warm: the first call after another model size is slower
        first_plain = number % 2 == 0
        if first_plain:
            plain = _plain(model, session, generate)
        dumped = _timed(generate)
        if not first_plain:
            plain = _plain(model, session, generate)
        session.close()
    return plain, dumped


def _plain(model: PreTrainedModel, session: Any, generate: Callable[[], torch.Tensor]) -> float:
    """Time the model without a hook on it."""
    session.disarm()
    wrapper = model.__dict__.pop("generate")
    try:
        return _timed(generate)
    finally:
        model.__dict__["generate"] = wrapper
        session.arm()


def _timed(generate: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    generate()
    return time.perf_counter() - start


@contextmanager
def _folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hf_dumper_bench_"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _sizes(dump: Path) -> tuple[int, int, int]:
    files = [p for p in dump.rglob("*") if p.is_file()]
    with open_dump(dump) as reader:
        records = reader.index().num_rows
    return records, sum(p.stat().st_size for p in files), len(files)


def _line(row: Row) -> str:
    return (
        f"{row.workload} {row.mode:12} ratio {row.ratio:.3f} ({row.lowest:.3f} to "
        f"{row.highest:.3f})  plain {row.plain:.3f} s  dumped {row.dumped:.3f} s  "
        f"{row.records} records  {row.bytes / 1e6:.1f} MB in {row.files} files"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=["W1"])
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--json", help="file to keep the figures in")
    return parser.parse_args()


if __name__ == "__main__":
    main()
