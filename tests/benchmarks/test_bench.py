"""The benchmark runs, and compares each run with the plain one beside it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rounds import neighbours

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def script(name, *arguments):
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("variants", ["a", "ab", "abc", "abcde"])
def test_every_variant_runs_once_a_round_beside_a_plain_one(variants):
    for number in range(2 * len(variants)):
        groups = list(neighbours(list(variants), number))
        assert sorted(name for group in groups for name in group if name) == list(variants)
        for group in groups:
            assert group.count(None) == 1
            assert len(group) == 2 or group[1] is None


def test_a_quick_run_measures_every_mode_and_keeps_it(tmp_path):
    kept = tmp_path / "kept.json"
    printed = script("bench.py", "--quick", "--json", kept)
    figures = json.loads(kept.read_text("utf-8"))
    modes = ["tensors", "statistics", "both", "last-logits", "naive"]
    assert [row["mode"] for row in figures["rows"]] == modes
    assert [row["records"] for row in figures["rows"]] == [243, 243, 243, 9, None]
    assert script("table.py", kept) == printed
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(modes)
    assert len({line.count("|") for line in lines}) == 1
