"""Bounds and errors of a dump on the command line: what is printed, and which status ends it."""

import pytest

from hf_dumper.cli.failures import DONE, FAILED, IMPOSSIBLE
from hf_dumper.store import budget
from tests.commands import opened, run_tiny

pytestmark = pytest.mark.timeout(60)
MANY = ("--token-range", "all", "--max-new-tokens", 40)


def test_a_dump_that_reaches_its_bound_is_status_1_and_says_so(place, cli):
    status, out, err = cli(*run_tiny(*MANY, "--max-bytes", "1.5MB"))
    assert status == FAILED
    assert "Run 0 is INCOMPLETE: max_bytes=1500000 is reached" in " ".join(out.split())
    assert err.startswith("warning: Run 0 in d is incomplete: max_bytes=1500000 is reached")
    assert budget.bytes_in(place / "d") <= 1_500_000


def test_a_dump_that_reaches_its_bound_can_be_status_2(place, cli):
    status, _, err = cli(*run_tiny(*MANY, "--max-bytes", "1.5MB", "--on-error", "raise"))
    assert status == IMPOSSIBLE
    assert "hf-dumper: Run 0 in d is incomplete: max_bytes=1500000 is reached" in err
    with opened(place / "d") as reader:
        assert reader.run_info(0)["complete"] is False


def test_a_durable_dump_is_made_like_any_other(place, cli):
    assert cli(*run_tiny("--durable", "--on-error", "warn", "--max-bytes", "2GB"))[0] == DONE
    with opened(place / "d") as reader:
        assert reader.run_info(0)["complete"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-bytes", "much"), "'much' is no size"),
        (("--max-bytes", "0"), "max_bytes must be a number of bytes above 0"),
        (("--on-error", "ignore"), "'ignore' is not one of"),
    ],
)
def test_a_bound_that_cannot_be_meant_is_status_2(place, cli, options, said):
    status, _, err = cli(*run_tiny(*options))
    assert status == IMPOSSIBLE
    assert said in err
