"""`hf-dumper run --follow`: the tokens of a golden dump through another model."""

import json

import pytest

from hf_dumper.cli.failures import DONE, FAILED, IMPOSSIBLE
from tests.commands import opened, run_tiny, save_model


@pytest.fixture
def golden(place, cli, tiny_llama):
    """Make the dump `d` of the model `tiny`, and another model in `other`."""
    save_model(tiny_llama(seed=1), place / "other")
    options = ("--prompt", "three", "--token-range", "0-1", "--tensor-part", 1)
    assert cli(*run_tiny(*options))[0] == DONE
    return place / "d"


def follow(*more):
    return "run", "other", "--follow", "d", "--dump", "c", *more


def test_prompts_and_tokens_come_from_the_dump(golden, place, cli):
    status, out, err = cli(*follow())
    assert (status, err) == (DONE, "")
    assert "run 1  three → " in out
    for run in (0, 1):
        ids = [opened(place / name).run_info(run)["generated_ids"] for name in ("d", "c")]
        assert ids[0] == ids[1]


def test_what_is_dumped_is_what_the_golden_holds(golden, place, cli):
    cli(*follow())
    options = opened(place / "c").manifest["identity"]["dump_config"]
    assert (options["token_range"], options["tensor_part"]) == ("0-1", 1)


def test_options_win_over_what_the_golden_holds(golden, place, cli):
    cli(*follow("--token-range", "1"))
    options = opened(place / "c").manifest["identity"]["dump_config"]
    assert (options["token_range"], options["tensor_part"]) == ("1", 1)


def test_the_self_check_takes_the_first_prompt_of_the_dump(golden, cli):
    facts = json.loads(cli(*follow("--self-check", "--json"))[1])
    assert facts["self_check"]["identical"] is True
    assert facts["self_check"]["tokens"] == 2


def test_a_run_that_cannot_be_followed_is_told_and_is_status_1(golden, place, cli):
    facts = place / "d" / "runs" / "000001" / "run.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"complete": False}))
    status, _, err = cli(*follow())
    assert status == FAILED
    assert err == "warning: Run 1 of 'd' cannot be followed: it is incomplete (it did not end).\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--prompt", "x"), "--prompt: --follow takes prompts and tokens from 'd'"),
        (("--prompts", "p.txt", "--chat"), "--prompts, --chat: --follow takes"),
        (("--max-new-tokens", 3), "--max-new-tokens: --follow takes"),
        (("--do-sample",), "--do-sample: --follow takes"),
    ],
)
def test_what_contradicts_the_dump_is_one_line(golden, cli, options, said):
    status, out, err = cli(*follow(*options))
    assert (status, out, err.count("\n")) == (IMPOSSIBLE, "", 1)
    assert said in err


def test_a_golden_that_is_not_there_is_one_line(place, cli):
    status, _, err = cli("run", "tiny", "--follow", "nope", "--dump", "c")
    assert status == IMPOSSIBLE
    assert err == "hf-dumper: There is no dump at 'nope'.\n"


def test_a_golden_of_another_vocabulary_is_one_line(golden, place, cli, tiny_llama):
    save_model(tiny_llama(vocab_size=60), place / "other")
    status, _, err = cli(*follow())
    told = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert status == IMPOSSIBLE
    assert "this model knows 60 ids: it is not the golden's model" in told[0]
