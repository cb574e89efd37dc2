"""`accelerate launch -m hf_dumper run`: one dump by several processes, as one process makes it."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hf_dumper import compare, open_dump
from hf_dumper.store.budget import bytes_in
from hf_dumper.store.layout import LOCK
from hf_dumper.store.lock import lock_dump
from tests.commands import opened

pytestmark = pytest.mark.timeout(240)

WORDS = ["one", "two", "three", "four", "five"]


def rows(place, words=WORDS):
    (place / "rows.jsonl").write_text("".join(f"{json.dumps({'prompt': w})}\n" for w in words))
    return "--prompts", "rows.jsonl", "--max-new-tokens", "2"


def command(*more, processes=1, name="d"):
    """Return the command for so many processes, all on one thread, and its environment."""
    launch = ["accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}"]
    launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    launch += ["--main_process_port=0", "-m", "hf_dumper"]
    module = launch if processes > 1 else ["hf_dumper"]
    words = [sys.executable, "-m", *module, "run", "tiny", "--dump", name, *more]
    return words, os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def dump(*more, **options):
    """Run the command: (status, stdout, stderr)."""
    words, environment = command(*more, **options)
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=environment, timeout=110
    )
    return done.returncode, done.stdout, done.stderr


def ranks(path):
    """Return the processes that wrote each run, by its number."""
    reader = opened(path)
    return {run: set(reader.index(run).column("rank").to_pylist()) for run in reader.runs()}


def test_two_processes_make_the_dump_that_one_makes(place, cli):
    assert dump(*rows(place), name="golden")[0] == 0
    status, told, _ = dump(*rows(place), processes=2)
    assert status == 0
    assert ranks("d") == {0: {0}, 1: {1}, 2: {0}, 3: {1}, 4: {0}}
    assert [path.name for path in (place / "d" / "runs").glob("*/rank-*")].count("rank-1") == 2
    found = compare("golden", "d")
    assert found.passed
    assert found.verdict.name == "IDENTICAL"
    assert told.count("tensors of 5 runs") == 1
    assert [told.count(f" {word} →") for word in WORDS] == [1] * 5
    assert not (place / "d" / LOCK).exists()
    assert cli("verify", "d")[0] == 0
    assert cli("inspect", "d")[1].count("→") >= 5


def test_a_restart_with_other_processes_goes_on_where_the_launch_stopped(place):
    assert dump(*rows(place), processes=2)[0] == 0
    for number in ("000001", "000004"):  # one cut off, one that never began
        (place / "d" / "runs" / number / "run.json").unlink()
    untouched = (place / "d" / "runs" / "000000" / "run.json").stat().st_mtime_ns
    status, told, _ = dump(*rows(place), "--json", processes=3)
    facts = json.loads(told)
    assert status == 0
    assert (facts["skipped"], facts["replaced"]) == (3, 2)
    assert [run["run"] for run in facts["runs"]] == [1, 4]
    assert (place / "d" / "runs" / "000000" / "run.json").stat().st_mtime_ns == untouched
    assert sorted(ranks("d")) == [0, 1, 2, 3, 4]


def test_a_row_that_fails_in_one_process_is_told_and_fails_all(place):
    asked = rows(place, ["one", "", "three", "four"])
    status, told, _ = dump(*asked, processes=2)
    assert status == 1
    assert "Row 1 FAILED" in told
    assert sorted(ranks("d")) == [0, 2, 3]


def test_what_cannot_begin_is_told_once(place):
    status, told, errors = dump("--prompts", "nowhere.txt", processes=2)
    assert status == 1
    assert told == ""
    assert errors.count("hf-dumper: ") == 1
    assert "There is no file 'nowhere.txt'" in errors
    assert not (place / "d").exists()


def test_another_launch_is_refused(place):
    (place / "d").mkdir()
    lock = lock_dump(place / "d")
    status, _, errors = dump(*rows(place), processes=2)
    assert status == 1
    assert errors.count(f"Another process ({os.getpid()}) is writing the dump") == 1
    assert lock.is_held


def workers(launcher):
    """Return the processes of a launch."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(child) for child in children]


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_process_that_is_killed_costs_nothing_but_another_start(place):
    """Kill one of two in the middle, with the bar of both on a terminal; go on to the same dump."""
    many = [f"{i:03} {'x' * (i % 7)}" for i in range(150)]
    asked = (*rows(place, many), "--self-check", "--max-bytes", "400MB")
    words, environment = command(*asked, processes=2)
    ours, theirs = pty.openpty()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as run:
        os.close(theirs)
        shown = b""
        os.set_blocking(ours, False)

        def is_half_way():
            nonlocal shown
            with suppress(BlockingIOError):
                shown += os.read(ours, 1 << 16)
            counts = re.findall(rb" (\d+)/150 rows", shown)
            return len(counts) > 1 and int(counts[-1]) > 20

        wait_for(is_half_way)
        os.kill(workers(run.pid)[-1], signal.SIGKILL)
        run.wait(60)
    os.close(ours)
    assert run.returncode == 1
    done = sorted((place / "d" / "runs").glob("*/run.json"))
    assert 20 < len(done) < 150
    counts = [int(count) for count in re.findall(rb" (\d+)/150 rows", shown)]
    assert counts == sorted(counts)
    assert b" left" in shown
    before = [path.stat().st_mtime_ns for path in done]
    status, told, errors = dump(*asked, "--json", processes=2)
    assert status == 0, errors
    assert "\x1b" not in told + errors
    facts = json.loads(told)
    assert facts["skipped"] == len(done)
    assert facts["self_check"]["identical"] is True
    assert len(facts["runs"]) == 150 - len(done)
    assert [path.stat().st_mtime_ns for path in done] == before
    assert dump(*asked, name="golden")[0] == 0
    assert opened("d").runs() == tuple(range(150))
    assert compare("golden", "d").verdict.name == "IDENTICAL"


def test_failing_rows_in_the_layout_of_msit_by_two_processes(place):
    asked = (*rows(place, ["one", "", " ", "four", "five", "six"]), "--layout", "msit")
    status, told, errors = dump(*asked, processes=2)
    assert status == 1, errors
    assert "2 rows failed" in told
    noted = (place / "d" / "failures.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["row"] for line in noted) == [1, 2]
    assert dump(*asked, name="golden")[0] == 1
    with open_dump("d") as made, open_dump("golden") as golden:
        assert made.runs() == golden.runs() == (0, 3, 4, 5)
    assert compare("golden", "d").verdict.name == "IDENTICAL"


def test_the_bound_of_a_dump_is_that_of_all_processes(place):
    bound = 200_000
    status, told, errors = dump(*rows(place), "--max-bytes", str(bound), processes=2)
    assert status == 1
    assert "is INCOMPLETE: " in told
    assert "max_bytes" in told + errors
    assert bytes_in(place / "d") <= bound
