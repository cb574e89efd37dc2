"""Measure other tools beside hf_dumper, on W1, in an environment made for that.

    python benchmarks/peers.py [--rounds 3] [--json FILE]

Makes .venv-peers with the tested versions of everything, installs the other tools into it, and
runs each tool and mode in a process of its own, in turn with a plain copy of the model. What cannot
be installed or does not run is named with its reason, and the rest goes on.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
PINS = {"mindstudio-probe": "26.2.0", "nnsight": "0.8.1"}
SECONDS = 600
"""The longest that one installation or one measurement may take."""

RUNS = {
    "hf_dumper, tensors": "hf_dumper",
    "hf_dumper, statistics": "hf_dumper",
    "nnsight, cache of outputs in memory": "nnsight",
    "nnsight, cache of inputs and outputs in memory": "nnsight",
    "mindstudio-probe, L0 statistics": "mindstudio-probe",
    "mindstudio-probe, L0 tensor": "mindstudio-probe",
}
"""What `peer_runs.py` can measure, and the package that each needs."""


def main() -> None:
    """Install, measure, print a Markdown table; keep it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workload", default="W1")
    parser.add_argument("--json", type=Path, help="file to keep the figures in")
    arguments = parser.parse_args()
    missing = installed()
    rows = []
    print("| tool and mode | ratio | spread | plain, s | with it, s | MB | files | tokens |")
    print("|---|--:|--:|--:|--:|--:|--:|---|", flush=True)
    for name, package in RUNS.items():
        reason = missing.get(package)
        row = {"reason": reason} if reason else measured(name, arguments)
        rows.append({"name": name, **row})
        print(line(name, row), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


def installed() -> dict[str, str]:
    """Make the environment; return why what cannot be installed cannot."""
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ROOT / ".venv-peers")], check=True)
    failure = install("-e", str(ROOT))
    if failure:
        sys.exit(f"hf_dumper itself cannot be installed: {failure}")
    found = {name: install(f"{name}=={version}") for name, version in PINS.items()}
    return {name: f"not installed: {failure}" for name, failure in found.items() if failure}


def install(*what: str) -> str | None:
    """Install into the environment, torch and all else as tested; return why that failed."""
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return failure_of([*command, "-c", str(ROOT / "constraints.txt"), *what])[0]


def measured(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one tool and mode, or the reason why there are none."""
    script = str(Path(__file__).with_name("peer_runs.py"))
    command = [str(PYTHON), script, name, arguments.workload, str(arguments.rounds)]
    failure, output = failure_of(command)
    if failure:
        return {"reason": f"does not run: {failure}"}
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def failure_of(command: list[str]) -> tuple[str | None, str]:
    """Run a command; return the last words of one that failed, and what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {SECONDS} s", ""
    if done.returncode == 0:
        return None, done.stdout
    words = [text for text in done.stderr.splitlines() if text.strip()]
    return words[-1] if words else f"exit status {done.returncode}", done.stdout


def line(name: str, row: dict[str, Any]) -> str:
    """Return a row of the table."""
    return f"| {' | '.join([name, *_cells(row)])} |"


def _cells(row: dict[str, Any]) -> Iterator[str]:
    if "reason" in row:
        yield row["reason"]
        yield from [""] * 6
        return
    plain, dumped = row["plain"], row["dumped"]
    ratios = [d / p for p, d in zip(plain, dumped, strict=True)]
    yield f"{median(ratios):.2f}"
    yield f"{min(ratios):.2f} to {max(ratios):.2f}"
    yield f"{median(plain):.3f}"
    yield f"{median(dumped):.3f}"
    yield f"{row['bytes'] / 1e6:,.1f}"
    yield f"{row['files']:,d}"
    yield "the same" if row["same_tokens"] else "DIFFERENT"


if __name__ == "__main__":
    main()
