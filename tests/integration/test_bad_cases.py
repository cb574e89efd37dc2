"""`hf-dumper bad-cases` and `text-metrics`, as a user meets them."""

import csv
import json
import shutil

import pytest
import torch

from hf_dumper import DumpConfig, FollowTokens, open_dump, register_hook
from hf_dumper.cli.failures import DONE, FAILED, IMPOSSIBLE
from tests.commands import save_model

PROMPTS = {"a": "one", "b": "three", "c": "seven", "d": "ten"}
TOKENS = 3


@pytest.fixture
def other(place, tiny_llama):
    """Save a second model, `other`, of other weights."""
    save_model(tiny_llama(seed=1), place / "other")


def answer(model, prompt):
    ids = torch.tensor([[ord(c) for c in prompt]])
    new = model.generate(ids, attention_mask=ids > 0, max_new_tokens=TOKENS, do_sample=False)
    return new[0, ids.shape[1] :].tolist()


def write(path, **passed):
    rows = [
        {"id": i, "prompt": PROMPTS[i[0]], "answer": "", "passed": p} for i, p in passed.items()
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def results(place):
    """Write two files that differ in `a` and `b`."""
    write(place / "g.jsonl", a=True, b=False, c=True)
    write(place / "c.jsonl", a=False, b=True, c=True)


def bad_cases(*more):
    return "bad-cases", "g.jsonl", "c.jsonl", "--max-new-tokens", TOKENS, *more


def models(*more):
    sides = "--golden-model", "tiny", "--candidate-model", "other", "--dump", "out"
    return bad_cases(*sides, *more)


def test_the_first_differing_token_is_that_of_the_models(results, other, place, cli, tiny_llama):
    status, out, err = cli(*models("--json"))
    assert (status, err) == (FAILED, "")
    told = json.loads(out)
    assert [case["id"] for case in told["cases"]] == ["a", "b"]
    for case in told["cases"]:
        ids = [answer(tiny_llama(seed=seed), PROMPTS[case["id"]]) for seed in (0, 1)]
        token = next(t for t in range(TOKENS) if ids[0][t] != ids[1][t])
        assert (case["status"], case["token"]) == ("tokens differ", token)
        assert (case["golden_id"], case["candidate_id"]) == (ids[0][token], ids[1][token])
        assert (case["verdict"], case["kl"] > 0, case["margin"] > 0) == ("diverged", True, True)


def test_only_the_bad_cases_are_dumped_and_only_their_last_logits(results, other, place, cli):
    cli(*models())
    for side in ("golden", "candidate"):
        with open_dump(place / "out" / side) as dump:
            texts = [dump.run_info(run)["prompt"]["text"][0] for run in dump.runs()]
            assert texts == ["one", "three"]
            assert set(dump.index(0)["slot"].to_pylist()) == {"logits", "scores", "token_ids"}


def test_the_table_names_who_was_right_and_both_tokens(results, other, cli):
    out = cli(*models())[1]
    assert out.startswith("2 rows judged unlike, 1 alike.\n")
    lines = [line.split() for line in out.splitlines()]
    assert next(line for line in lines if line[:1] == ["a"])[1] == "golden"
    assert next(line for line in lines if line[:1] == ["b"])[1] == "candidate"


def test_the_comparison_is_kept_for_judge_and_the_table_as_csv(results, other, place, cli):
    cli(*models())
    assert cli("judge", "out/comparison")[0] == FAILED
    with (place / "out" / "bad_cases.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["a", "b"]


def test_existing_dumps_are_taken_and_may_hold_more(results, other, place, cli):
    cli(*models())
    first = json.loads(cli(*_again("--json"))[1])["cases"]
    write(place / "c.jsonl", a=False, b=False, c=True)
    second = json.loads(cli(*_again("--json"))[1])["cases"]
    assert second == first[:1]


def _again(*more):
    return bad_cases("--golden-dump", "out/golden", "--candidate-dump", "out/candidate", *more)


def test_a_case_that_a_dump_lacks_is_told(results, other, place, cli):
    cli(*models())
    write(place / "g.jsonl", a=True, d=True)
    write(place / "c.jsonl", a=False, d=False)
    cases = json.loads(cli(*_again("--json"))[1])["cases"]
    assert [case["status"] for case in cases] == ["tokens differ", "not compared"]
    assert "no run that generated in 'out/golden'" in cases[1]["reason"]


def test_a_candidate_that_followed_tells_its_first_choice(results, other, place, cli, tiny_llama):
    cli(*models())
    free = json.loads(cli(*_again("--json"))[1])["cases"]
    model = tiny_llama(seed=1)
    with register_hook(model, DumpConfig(place / "f", "all", dump_last_logits=True)):
        for name in ("a", "b"):
            golden = answer(tiny_llama(), PROMPTS[name])
            ids = torch.tensor([[ord(c) for c in PROMPTS[name]]])
            follow = [FollowTokens([golden])]
            model.generate(
                ids, attention_mask=ids > 0, max_new_tokens=TOKENS, logits_processor=follow
            )
    told = json.loads(
        cli(*bad_cases("--golden-dump", "out/golden", "--candidate-dump", "f", "--json"))[1]
    )
    for case, before in zip(told["cases"], free, strict=True):
        assert case["status"] == "first choices differ"
        assert [case[k] for k in ("token", "golden_id", "candidate_id")] == [
            before[k] for k in ("token", "golden_id", "candidate_id")
        ]


@pytest.mark.parametrize("shallow", ["golden", "candidate"])
def test_a_model_with_fewer_layers_has_its_first_differing_token(
    results, place, cli, tiny_llama, shallow
):
    save_model(tiny_llama(seed=1, num_hidden_layers=1), place / "other")
    names = ("other", "tiny") if shallow == "golden" else ("tiny", "other")
    sides = "--golden-model", names[0], "--candidate-model", names[1], "--dump", "out"
    assert cli(*bad_cases(*sides))[1].count("others by nature") == 2
    told = json.loads(cli(*_again("--json"))[1])["cases"]
    models = {"tiny": tiny_llama(), "other": tiny_llama(seed=1, num_hidden_layers=1)}
    for case in told:
        ids = [answer(models[name], PROMPTS[case["id"]]) for name in names]
        token = next(t for t in range(TOKENS) if ids[0][t] != ids[1][t])
        assert (case["status"], case["token"]) == ("tokens differ", token)
        assert (case["golden_id"], case["candidate_id"]) == (ids[0][token], ids[1][token])
        assert (case["verdict"], case["kl"] > 0) == ("not computable", True)
    judged = json.loads(cli("judge", "out/comparison", "--json")[1])["tokens"]
    assert {row["verdict"] for row in judged} == {"not computable"}


def test_the_same_model_differs_in_no_token(results, place, cli):
    sides = "--golden-model", "tiny", "--candidate-model", "tiny", "--dump", "out", "--json"
    status, out, _ = cli(*bad_cases(*sides))
    assert status == FAILED
    cases = json.loads(out)["cases"]
    assert [(case["status"], case["kl"], case["token"]) for case in cases] == [
        ("no token differs", 0, None)
    ] * 2


def test_rows_of_a_padded_batch_are_found(results, place, cli, tiny_llama):
    texts = [PROMPTS["a"], PROMPTS["b"]]  # of 3 and 5 tokens
    ids = torch.tensor([[0] * (5 - len(text)) + [ord(c) for c in text] for text in texts])
    for name, seed in (("golden", 0), ("candidate", 1)):
        model = tiny_llama(seed=seed)
        with register_hook(model, DumpConfig(place / name, "all")):
            model.generate(ids, attention_mask=ids > 0, max_new_tokens=TOKENS, do_sample=False)
    shutil.copytree(place / "tiny", place / "golden" / "tokenizer", dirs_exist_ok=True)
    out = cli(*bad_cases("--golden-dump", "golden", "--candidate-dump", "candidate", "--json"))[1]
    for row, case in enumerate(json.loads(out)["cases"]):
        told = answer(tiny_llama(), texts[row]), answer(tiny_llama(seed=1), texts[row])
        token = next(t for t in range(TOKENS) if told[0][t] != told[1][t])
        assert (case["row"], case["token"], case["position"]) == (
            row,
            token,
            len(texts[row]) + token - 1,
        )


def test_dumps_without_a_tokenizer_cannot_be_searched(results, place, cli, tiny_llama):
    model, ids = tiny_llama(), torch.tensor([[5, 6]])
    with register_hook(model, DumpConfig(place / "g", dump_last_logits=True)):
        model.generate(ids, attention_mask=ids > 0, max_new_tokens=1)
    status, _, err = cli(*bad_cases("--golden-dump", "g", "--candidate-dump", "g"))
    assert status == IMPOSSIBLE
    assert "keeps a tokenizer, so that prompts cannot be found" in err


def test_answers_that_are_not_reproduced_are_told(results, place, cli):
    text = (place / "g.jsonl").read_text().replace('"answer": ""', '"answer": "something else"')
    (place / "g.jsonl").write_text(text)
    out = cli(*bad_cases("--golden-model", "tiny", "--candidate-model", "tiny", "--dump", "out"))[1]
    assert "The golden side now answers otherwise than its file says: a, b" in out
    assert "The candidate side" not in out


def test_files_that_agree_need_no_model_and_are_status_0(results, place, cli):
    write(place / "c.jsonl", a=True, b=False, c=True)
    status, out, err = cli(*bad_cases("--golden-model", "none", "--candidate-dump", "none", *OUT))
    assert (status, out, err) == (DONE, "0 rows judged unlike, 3 alike.\n", "")


OUT = "--dump", "out"


def test_missing_and_doubled_ids_are_told_and_are_status_1(results, place, cli):
    write(place / "g.jsonl", a=True, b1=True, d=True)
    text = (place / "g.jsonl").read_text().splitlines()
    (place / "g.jsonl").write_text("\n".join([*text, text[-1]]))
    write(place / "c.jsonl", a=True, b2=True, d=True)
    status, out, _ = cli(*bad_cases("--golden-dump", "none", "--candidate-dump", "none"))
    assert status == FAILED
    assert out.splitlines() == [
        "0 rows judged unlike, 1 alike.",
        "1 id more than once in a file, left out: d",
        "1 id in the golden's file only: b1",
        "1 id in the candidate's file only: b2",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "Give either --golden-model MODEL or --golden-dump FOLDER."),
        (("--golden-model", "tiny"), "--dump FOLDER is missing: the dump of --golden-model"),
        (("--golden-dump", "g"), "Give either --candidate-model MODEL or --candidate-dump FOLDER."),
        (
            ("--golden-dump", "g", "--candidate-dump", "c", "--dtype", "float16"),
            "Options of a model are given, but --candidate-dump runs none.",
        ),
        (("--golden-model", "tiny", "--dump", "."), "Give either --candidate-model"),
        (("--golden-dump", "g", "--candidate-dump", "c"), "There is no dump at 'g'."),
    ],
)
def test_what_cannot_be_done_says_so(results, cli, options, said):
    status, out, err = cli(*bad_cases(*options))
    assert (status, out) == (IMPOSSIBLE, "")
    assert said in err


def test_a_dump_that_exists_is_not_added_to(results, place, cli):
    (place / "out" / "golden").mkdir(parents=True)
    status, _, err = cli(*models())
    assert status == IMPOSSIBLE
    assert "'out/golden' exists" in err


def test_columns_are_named_by_options(place, cli):
    for name, ok in (("g.jsonl", 1), ("c.jsonl", 1)):
        row = {"nr": 1, "question": "one", "said": "x", "ok": ok}
        (place / name).write_text(json.dumps(row))
    names = "--id-column", "nr", "--prompt-column", "question", "--answer-column", "said"
    sides = "--golden-dump", "none", "--candidate-dump", "none"
    assert cli(*bad_cases(*names, "--passed-column", "ok", *sides))[0] == DONE


# --- text-metrics ---------------------------------------------------------------------------------


@pytest.fixture
def answers(place):
    """Write answers to the ids 1 and 2, of which only the second agree."""
    (place / "g.csv").write_text("id,answer\n1,the cat sat on the mat\n2,so it is\n")
    (place / "c.jsonl").write_text(
        '{"id": 1, "answer": "the cat sat on a mat"}\n{"id": 2, "answer": "so it is"}'
    )


def test_metrics_are_told_per_row_and_over_all(answers, cli):
    status, out, err = cli("text-metrics", "g.csv", "c.jsonl")
    assert (status, err) == (DONE, "")
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert lines[1] == ["1", "no", "3", "0.864", "53.7", "0.833", "0.6", "0.833"]
    assert lines[2] == ["2", "yes", "0", "1", "100", "1", "1", "1"]
    assert lines[3][:3] == ["all", "0.5", "1.5"]


def test_metrics_are_json_for_scripts(answers, cli):
    told = json.loads(cli("text-metrics", "g.csv", "c.jsonl", "--json")[1])
    assert [row["exact"] for row in told["rows"]] == [False, True]
    assert told["total"]["rouge1"] == pytest.approx((5 / 6 + 1) / 2)
    assert told["whole"] is True


def test_an_answer_without_a_partner_is_status_1(answers, place, cli):
    (place / "c.jsonl").write_text('{"id": 2, "answer": "so it is"}')
    status, out, _ = cli("text-metrics", "g.csv", "c.jsonl")
    assert status == FAILED
    assert "1 id in the golden's file only: 1" in out
