"""`failures.jsonl`: appended to by any number of processes at once."""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from hf_dumper.runner.failures import RowFailure, note_failure


def note(path, rank):
    for row in range(rank, 400, 4):
        note_failure(path, RowFailure.of(row, ValueError("x" * 1500)))


def test_lines_of_several_processes_do_not_mix(tmp_path):
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        list(pool.map(note, [tmp_path] * 4, range(4)))
    found = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert sorted(entry["row"] for entry in found) == list(range(400))
    assert {entry["error"] for entry in found} == {"ValueError: " + "x" * 1500}


def test_a_line_that_a_kill_cut_off_stays_by_itself(tmp_path):
    (tmp_path / "failures.jsonl").write_text('{"row": 1, "err')
    note_failure(tmp_path, RowFailure.of(2, ValueError("y" * 9000)))
    cut, whole = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert cut == '{"row": 1, "err'
    entry = json.loads(whole)
    assert (entry["row"], len(entry["error"])) == (2, 2000)
