"""`hf-dumper run --prompts SOURCE`: what a user sees of data sets, batches and failures."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest
from datasets import Dataset

from hf_dumper.cli.failures import DONE, FAILED, IMPOSSIBLE
from hf_dumper.cli.terminal import Work
from tests.commands import opened


@pytest.fixture
def rows(place):
    """Write three rows with questions."""
    texts = [{"id": f"q{i}", "question": text} for i, text in enumerate(("one", "three", "two"))]
    (place / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return place


def run(source, *more):
    return ("run", "tiny", "--prompts", source, "--max-new-tokens", 2, "--dump", "d", *more)


def prompts(path):
    with opened(path) as reader:
        return {n: reader.run_info(n)["prompt"]["text"] for n in reader.runs()}


def test_a_slice_of_rows_is_dumped_under_their_numbers(rows, cli):
    status, out, err = cli(
        *run("p.jsonl", "--split", "train[1:3]", "--template", r"Q: {question}\n")
    )
    assert (status, err) == (DONE, "")
    assert "run 1  Q: three → " in out
    assert prompts(rows / "d") == {1: ["Q: three\n"], 2: ["Q: two\n"]}


def test_a_saved_data_set_in_batches(rows, cli, capfd):
    Dataset.from_dict({"question": ["one", "three", "two"], "n": [1, 2, 3]}).save_to_disk("saved")
    capfd.readouterr()
    status, out, err = cli(*run("saved", "--column", "question", "--batch-size", 2, "--self-check"))
    assert (status, err) == (DONE, "")
    assert "Self-check passed" in out
    assert [line.split(" →")[0] for line in out.splitlines() if line.startswith("run ")] == [
        "run 0  one",
        "run 0  three",
        "run 2  two",
    ]
    assert opened(rows / "d").runs() == (0, 2)


def test_a_stream_is_cut_by_a_limit_and_shuffled_by_the_seed(rows, cli):
    options = ("--streaming", "--shuffle", "--seed", 3, "--limit", 2)
    assert cli(*run("p.jsonl", *options))[0] == DONE
    first = prompts(rows / "d")
    assert len(first) == 2
    assert cli(*run("p.jsonl", *options, "--overwrite"))[0] == DONE
    assert prompts(rows / "d") == first


def test_a_second_start_says_what_it_skips_and_the_last_has_nothing_to_do(rows, cli):
    assert cli(*run("p.jsonl", "--limit", 2))[0] == DONE
    status, out, err = cli(*run("p.jsonl"))
    assert (status, err) == (DONE, "")
    assert "Skipped 2 rows that the dump holds already." in out
    assert "run 2  two → " in out
    assert "run 1" not in out
    status, out, err = cli(*run("p.jsonl"))
    assert (status, err) == (DONE, "")
    assert "Skipped 3 rows" in out


def test_a_run_that_was_cut_off_is_made_again(rows, cli):
    cli(*run("p.jsonl"))
    (rows / "d/runs/000001/run.json").unlink()
    status, out, _ = cli(*run("p.jsonl", "--json"))
    facts = json.loads(out)
    assert (status, facts["skipped"], facts["replaced"], facts["failures"]) == (DONE, 2, 1, [])
    assert [made["run"] for made in facts["runs"]] == [1]


def test_a_row_without_a_prompt_is_told_and_is_status_1(rows, cli):
    with (rows / "p.jsonl").open("a") as file:
        file.write('{"id": "q3", "question": null}\n{"id": "q4", "question": "four"}\n')
    status, out, err = cli(*run("p.jsonl"))
    assert (status, err) == (FAILED, "")
    assert "Row 3 FAILED: Row 3 of p.jsonl holds nothing in column 'question'" in out
    assert "1 row failed: see d/failures.jsonl." in out
    assert opened(rows / "d").runs() == (0, 1, 2, 4)
    assert json.loads((rows / "d/failures.jsonl").read_text())["row"] == 3
    assert json.loads(cli(*run("p.jsonl", "--json"))[1])["failures"][0]["row"] == 3


def test_no_row_with_a_prompt_is_one_line(rows, cli):
    (rows / "n.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    status, _, err = cli(*run("n.jsonl"))
    assert status == IMPOSSIBLE
    assert "Row 0 of n.jsonl holds int '1' in column 'n'" in err


def test_a_dump_of_other_rows_is_one_line(rows, cli):
    cli(*run("p.jsonl"))
    status, _, err = cli(*run("p.jsonl", "--template", "{question}?"))
    assert (status, err.count("\n")) == (IMPOSSIBLE, 1)
    assert "Run 0 of 'd' was made of another prompt than row 0 is now." in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--prompt", "x", "--limit", 3, "--split", "a"), "--split, --limit are about --prompts"),
        (("--prompt", "x", "--prompts", "p.jsonl"), "Give either --prompt TEXT"),
        (("--prompts", "p.jsonl", "--column", "a", "--template", "{a}"), "not both"),
        (("--prompts", "p.jsonl", "--split", "test"), "Cannot take split 'test' of p.jsonl"),
        (("--prompts", "owner/name"), "Cannot read 'owner/name': Couldn't reach"),
        (("--follow", "d", "--limit", 3), "--limit: --follow takes"),
    ],
)
def test_options_that_cannot_be_meant_are_one_line(rows, cli, options, said):
    status, out, err = cli("run", "tiny", *options)
    assert (status, out, err.count("\n")) == (IMPOSSIBLE, "", 1)
    assert said in err


def test_the_time_left_is_shown_where_the_end_is_known():
    work = Work("x")
    left = work._bar.columns[-1]
    (task,) = work._bar.tasks
    work.update(1, None)
    assert left.render(task).plain == ""
    work.update(2, 8)
    assert left.render(task).plain == "-:--:-- left"


def test_the_bar_on_a_terminal_counts_rows_and_leaves_nothing(place):
    texts = "".join(f"row {i}\n" for i in range(400))
    (place / "p.txt").write_text(texts)
    command = [sys.executable, "-m", "hf_dumper", *map(str, run("p.txt", "--limit", 150))]
    ours, theirs = pty.openpty()
    shown = b""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        try:
            while part := os.read(ours, 1 << 16):
                shown += part
        except OSError:  # the other end is closed: the command has ended
            pass
    os.close(ours)
    assert process.returncode == DONE
    counts = [int(count) for count in re.findall(rb" (\d+)/150 rows", shown)]
    assert len(set(counts)) > 2
    assert counts == sorted(counts)
    assert re.search(rb"\d+:\d\d:\d\d left", shown)
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") > 0  # the cursor is back
    last = shown.rpartition(b" rows")[2]
    assert b"\x1b[2K" in last  # and the line of the bar is empty
