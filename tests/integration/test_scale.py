"""`accelerate launch -m hf_dumper run`: one dump by several processes, as one process makes it."""

import json
import os
import subprocess
import sys

import pytest

from hf_dumper import compare
from hf_dumper.store.layout import LOCK
from hf_dumper.store.lock import lock_dump
from tests.commands import opened

pytestmark = pytest.mark.timeout(240)

WORDS = ["one", "two", "three", "four", "five"]


def rows(place, words=WORDS):
    (place / "rows.jsonl").write_text("".join(f"{json.dumps({'prompt': w})}\n" for w in words))
    return "--prompts", "rows.jsonl", "--max-new-tokens", "2"


def dump(*more, processes=1, name="d"):
    """Run the command in so many processes, all on one thread: (status, stdout, stderr)."""
    launch = ["accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}"]
    launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    launch += ["--main_process_port=0", "-m", "hf_dumper"]
    module = launch if processes > 1 else ["hf_dumper"]
    command = [sys.executable, "-m", *module, "run", "tiny", "--dump", name, *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=110
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
