"""Measure how size and time of a dump grow with rows, and what a second process gains.

    python benchmarks/scale.py [--rows 40 80] [--processes 1 2]

Each dump is made by `accelerate launch -m hf_dumper run` of the embedded model, one thread for each
process, 8 tokens of which the first is dumped. Writes `results/scale.json`, and prints it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from machine import machine

RESULT = Path(__file__).parent / "results" / "scale.json"
LAUNCH = ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def main() -> None:
    """Measure each number of rows with each number of processes."""
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=int, nargs="+", default=[40, 80])
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    asked = options.parse_args()
    found = [measure(rows, count) for rows in asked.rows for count in asked.processes]
    text = json.dumps({"machine": machine(), "dumps": found}, indent=1)
    RESULT.write_text(f"{text}\n", encoding="utf-8")
    print(text)


def measure(rows: int, processes: int) -> dict[str, float]:
    """Dump so many rows by so many processes; return seconds, bytes and files."""
    with tempfile.TemporaryDirectory() as place:
        prompts, dump = Path(place) / "rows.txt", Path(place) / "dump"
        lines = (f"Row {row} of a file that is read line by line\n" for row in range(rows))
        prompts.write_text("".join(lines), encoding="utf-8")
        start = perf_counter()
        run(processes, ["run", "demo", f"--prompts={prompts}", f"--dump={dump}"])
        seconds = perf_counter() - start
        files = [path for path in dump.rglob("*") if path.is_file()]
        return {
            "rows": rows,
            "processes": processes,
            "seconds": round(seconds, 1),
            "bytes": sum(path.stat().st_size for path in files),
            "files": len(files),
        }


def run(processes: int, command: list[str]) -> None:
    """Run a command of hf_dumper in so many processes."""
    many = [*LAUNCH, "--multi_gpu", f"--num_processes={processes}", "-m"]
    launch = ["accelerate.commands.launch", *many] if processes > 1 else []
    program = [sys.executable, "-m", *launch, "hf_dumper", *command, "--max-new-tokens=8"]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL, env=os.environ | ONE_THREAD)


if __name__ == "__main__":
    main()
