"""Many runs in one process: memory, threads and file handles stay as they are."""

import gc
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from hf_dumper import DumpConfig, register_hook
from tests.faults import facts, generate, readable_forwards

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")

PAGE = os.sysconf("SC_PAGE_SIZE")


class Footprint(NamedTuple):
    """What a process takes of the machine; memory in bytes."""

    memory: int
    handles: int
    threads: int


def footprint():
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    handles, threads = (len([*Path(f"/proc/self/{name}").iterdir()]) for name in ("fd", "task"))
    return Footprint(resident, handles, threads)


def live(model, path, marks):
    """Dump as many runs as the last mark says; return the footprint at each mark.

    Of the runs the last one is kept, so that the disk holds out as well.
    """
    found = {}
    with register_hook(model, DumpConfig(path, "all")) as session:
        for run in range(1, marks[-1] + 1):
            generate(model, 2)
            if run > 1:
                shutil.rmtree(path / "runs" / f"{run - 2:06d}")
            if run in marks:
                found[run] = footprint()
        assert len(session.runs) == marks[-1]
    return found


def check(found, first, last, path, most):
    growth = (found[last].memory - found[first].memory) / (last - first)
    assert found[last].handles == found[first].handles
    assert found[last].threads == found[first].threads
    assert growth < most, found
    assert facts(path, last - 1)["complete"]
    assert readable_forwards(path, last - 1) == [0, 1]


def test_hundreds_of_runs_take_no_more_than_the_first_ones(tiny_llama, tmp_path):
    found = live(tiny_llama(num_hidden_layers=1), tmp_path, (100, 400))
    check(found, 100, 400, tmp_path, 64 << 10)  # a heap settles within some thousand runs


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_runs_take_no_more_than_the_first_thousand(tiny_llama, tmp_path, capsys):
    marks = (1000, 5000, 10000)
    found = live(tiny_llama(num_hidden_layers=1), tmp_path, marks)
    with capsys.disabled():
        sys.stdout.writelines(f"\n{run} runs: {found[run]}" for run in marks)
    check(found, 1000, 10000, tmp_path, 1 << 10)
