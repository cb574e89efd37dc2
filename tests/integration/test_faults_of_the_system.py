"""Limits, permissions and signals of the operating system, each in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SERVER = Path(__file__).with_name("fault_server.py")
TOKENS = 8
ALL = list(range(TOKENS))
FAULTS = ["file size", *(f"{spare} handles" for spare in range(5)), "permission"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    command = [sys.executable, str(SERVER), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert result.returncode == 0, result.stderr
    lines = map(json.loads, result.stdout.splitlines())
    return {(line["fault"], line["early"]): line for line in lines}


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
class TestFaults:
    def test_the_process_ends_in_order(self, reports, fault, early):
        assert reports[fault, early]["status"] == 0

    def test_the_tokens_are_as_ever(self, reports, fault, early):
        assert reports[fault, early]["said"]["same"]

    def test_the_run_before_it_is_whole(self, reports, fault, early):
        first = reports[fault, early]["runs"][0]
        assert first == {"complete": True, "why": None, "forwards": ALL}

    def test_a_run_is_whole_or_says_why_it_is_not(self, reports, fault, early):
        report = reports[fault, early]
        for run in report["runs"][1:]:
            assert run["complete"] == (run["why"] is None)
            assert run["forwards"] == list(range(len(run["forwards"])))
            assert not run["complete"] or run["forwards"] == ALL

    def test_one_warning_tells_when_it_is_not_whole(self, reports, fault, early):
        report = reports[fault, early]
        whole = len(report["runs"]) == 2 and report["runs"][1]["complete"]
        assert len(report["said"]["told"]) == (0 if whole else 1)


@pytest.mark.parametrize(
    ("fault", "early", "words"),
    [
        ("file size", True, "File too large"),
        ("file size", False, "File too large"),
        ("0 handles", True, "Too many open files"),
        ("1 handles", True, "Too many open files"),
    ],
)
def test_the_warning_names_the_fault(reports, fault, early, words):
    (told,) = reports[fault, early]["said"]["told"]
    assert words in told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("early", [True, False])
def test_a_permission_that_is_taken_away_is_named(reports, early):
    (told,) = reports["permission", early]["said"]["told"]
    assert "Permission denied" in told


@pytest.mark.parametrize("early", [True, False])
def test_sigterm_ends_the_process_and_not_the_dump(reports, early):
    report = reports["sigterm", early]
    assert report["status"] == -signal.SIGTERM
    assert report["runs"][0]["complete"]
    for run in report["runs"][1:]:
        assert "stopped before its end" in run["why"]
        assert run["forwards"] in ([0], [0, 1])
