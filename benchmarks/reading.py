"""Measure how fast dumps are opened and read, how large an index is, and what importing costs.

    python benchmarks/reading.py [--records 100000 1000000] [--no-models] [--rounds 7] [--json FILE]

Dumps are made up but for those of W1 and W3, whose index sizes are measured, too.
Every opening is the first one of a new process that has imported hf_dumper; files are in the
page cache. Imports are timed in turn with those of what hf_dumper needs.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import torch
from synthetic import build

from hf_dumper import open_dump

LOADS = 2000
MADE_UP = "made up"
MODELS = (("W3", False), ("W3", True), ("W1", False), ("W1", True))
NEEDED = (
    "import torch, transformers; from transformers import "
    "AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, "
    "AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, GenerationConfig, LogitsProcessor, "
    "LogitsProcessorList, PretrainedConfig, PreTrainedModel, StoppingCriteria, "
    "StoppingCriteriaList"
)
IMPORTS = {
    "nothing": "",
    "import hf_dumper": "import hf_dumper",
    "torch": "import torch",
    "torch, then open_dump": "import torch; from hf_dumper import open_dump",
    "what hf_dumper needs of transformers": NEEDED,
    "the same, then DumpingModel": f"{NEEDED}; from hf_dumper import DumpingModel",
}
HELP = "import sys; from hf_dumper.cli import main; sys.argv = ['hf-dumper', '--help']; main()"

Figures = dict[str, Any]


def main() -> None:
    """Measure what was asked for, print the tables, and write them as JSON if asked to."""
    arguments = _arguments()
    rows: dict[str, list[Figures]] = {"reading": [], "index": [], "importing": []}
    with TemporaryDirectory(prefix="hf_dumper_reading_") as folder:
        for records in arguments.records:
            for kept in (False, True):
                dump = Path(folder) / f"{records}-{kept}"
                build(dump, records, statistics=kept)
                rows["index"].append(index_size(MADE_UP, dump, kept))
                rows["reading"].append(reading(dump, kept, arguments.rounds))
        for name, kept in MODELS if arguments.models else ():
            dump = Path(folder) / f"{name}-{kept}"
            in_new_process(dump_model, name, dump, kept)
            rows["index"].append(index_size(name, dump, kept))
    rows["importing"] = importing(arguments.rounds)
    for name, table in rows.items():
        print_table(name, table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


def reading(dump: Path, kept: bool, rounds: int) -> Figures:
    """Return the times of opening a dump and of reading from it."""
    opened = [in_new_process(opening, dump) for _ in range(rounds)]
    loads = in_new_process(loading, dump)
    tables = [in_new_process(table, dump) for _ in range(min(rounds, 3) if kept else 1)]
    figures: Figures = {"records": tables[0][1], "statistics": "captured" if kept else "computed"}
    for i, name in enumerate(("open", "first_load")):
        times = [1000 * times[i] for times in opened]
        figures |= {f"{name}_best_ms": min(times), f"{name}_ms": statistics.median(times)}
    return figures | {
        "load_us": 1e6 * statistics.median(loads),
        "load_p99_us": 1e6 * statistics.quantiles(loads, n=100)[-1],
        "statistics_s": statistics.median(seconds for seconds, _ in tables),
    }


def opening(dump: Path) -> tuple[float, float]:
    """Return the seconds of opening a dump, and of opening it and loading one tensor by name."""
    start = time.perf_counter()
    reader = open_dump(dump)
    opened = time.perf_counter()
    reader.load("model.layers.7.mlp", token=3)
    return opened - start, time.perf_counter() - start


def loading(dump: Path) -> list[float]:
    """Return the seconds of loading each of many tensors, chosen at random, by name."""
    reader = open_dump(dump)
    index = reader.index().select(["module", "slot", "token"])
    rows = random.Random(0).sample(range(index.num_rows), LOADS)
    names = [tuple(row.values()) for row in index.take(rows).to_pylist()]
    reader.load(*names[0])  # reads the index
    times = []
    for name in names:
        start = time.perf_counter()
        reader.load(*name)
        times.append(time.perf_counter() - start)
    return times


def table(dump: Path) -> tuple[float, int]:
    """Return the seconds of opening a dump and reading its statistics, and their number."""
    start = time.perf_counter()
    found = open_dump(dump).statistics()
    seconds = time.perf_counter() - start
    if found.column("mean").null_count:
        sys.exit("Statistics are missing: the measurement is void.")
    return seconds, found.num_rows


def index_size(name: str, dump: Path, kept: bool) -> Figures:
    """Return the size of the index of the dump's only run."""
    folder = dump / "runs" / "000000" / "rank-0"
    nbytes = (folder / "index.parquet").stat().st_size
    records = pq.ParquetFile(folder / "index.parquet").metadata.num_rows
    tensors = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {
        "dump": name,
        "statistics": kept,
        "records": records,
        "bytes": nbytes,
        "bytes_per_record": nbytes / records,
        "share_of_tensors": nbytes / tensors if name != MADE_UP else None,  # theirs are tiny
    }


def dump_model(name: str, dump: Path, kept: bool) -> None:
    """Dump all tensors of a workload, with statistics or without."""
    from workloads import WORKLOADS

    from hf_dumper import DumpConfig, register_hook

    workload = WORKLOADS[name]
    model = workload.build()
    ids = torch.randint(1, model.config.vocab_size, (1, workload.prompt))
    config = DumpConfig(dump, "all", dump_statistics_mode=2 if kept else 0, hash_weights=False)
    with register_hook(model, config):
        model.generate(
            ids, max_new_tokens=workload.tokens, min_new_tokens=workload.tokens, pad_token_id=0
        )


def importing(rounds: int) -> list[Figures]:
    """Time whole processes, one statement each, in turn."""
    statements = IMPORTS | {"hf-dumper --help": HELP}
    times: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(rounds):
        for name, statement in statements.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True, stdout=subprocess.DEVNULL)
            times[name].append(1000 * (time.perf_counter() - start))
    return [
        {"process": name, "best_ms": min(found), "median_ms": statistics.median(found)}
        for name, found in times.items()
    ]


def in_new_process(run: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a process that has done nothing but import this file."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, *arguments).result()


def print_table(name: str, rows: list[Figures]) -> None:
    """Print figures as a Markdown table."""
    if not rows:
        return
    print(f"\n{name}\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        print(f"| {' | '.join(cells)} |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--models", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
