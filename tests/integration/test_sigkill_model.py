"""A generation killed at any moment leaves a dump that opens and is sound."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 200
SERVER = Path(__file__).with_name("kill_server.py")


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    command = [sys.executable, str(SERVER), str(folder), str(KILLS), "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_every_dump_of_two_hundred_kills_opens(kills):
    assert len(kills) == KILLS


def test_the_kills_hit_generations_at_work(kills):
    assert sum(kill["reported"] > 0 for kill in kills) > KILLS / 2


def test_every_readable_tensor_has_its_hash(kills):
    assert all(kill["sound"] for kill in kills)


def test_every_run_that_returned_is_complete(kills):
    assert all(kill["complete"] for kill in kills)


def test_at_most_one_forward_is_lost(kills):
    assert max(kill["lost"] for kill in kills) <= 1
