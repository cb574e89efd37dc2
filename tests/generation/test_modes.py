"""Every way of generating by every check: the witness and the replays of `checks.py`."""

from pathlib import Path

import pytest

from tests.generation.checks import CHECKS, made
from tests.generation.coverage import kept, section
from tests.generation.modes import MODES, demo


@pytest.fixture(scope="module")
def subject():
    return demo()


@pytest.fixture(scope="module", params=MODES)
def case(request, subject, tmp_path_factory):
    if "quanto" in request.param:
        pytest.importorskip("optimum.quanto", reason="this cache is made by optimum-quanto")
    return made(*subject, request.param, tmp_path_factory.mktemp("mode") / "dump")


@pytest.mark.parametrize("check", CHECKS)
def test_a_way_of_generating_passes_a_check(case, check):
    CHECKS[check](case)


def test_the_kept_table_has_every_mode_and_every_check():
    results = kept()
    assert list(results) == list(MODES)
    assert all(list(checks) == list(CHECKS) for checks in results.values())


def test_the_kept_table_has_no_failure():
    assert {word for checks in kept().values() for word in checks.values()} <= {"passed"}


def test_the_section_has_a_line_for_every_mode():
    lines = section(kept()).splitlines()
    assert [name for name in MODES if not any(f"| {name} |" in line for line in lines)] == []


def test_the_page_shows_what_was_kept():
    page = Path(__file__).parents[2] / "docs" / "coverage.md"
    assert section(kept()) in page.read_text("utf-8")
