"""Rows of a data set through a dumped model: numbers, batches, going on, and failures."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from hf_dumper.config import DumpConfig
from hf_dumper.errors import DumpIdentityError, EmptyDumpError, PromptError
from hf_dumper.model import register_hook
from hf_dumper.prompts import Selection, open_prompts
from hf_dumper.runner import RowRunner, dump_rows, numbered_rows
from hf_dumper.store import NativeReader, open_dump
from tests.integration.test_runner import Codes

TEXTS = ["one", "three", "a", "fifteen!", "two"]


class Breaking:
    """Makes a model fail as soon as a prompt holds a character."""

    def __init__(self, model, character):
        self.is_on = True
        self._id = ord(character)
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        if self.is_on and (kwargs["input_ids"] == self._id).any():
            msg = "too much for me"
            raise RuntimeError(msg)


@pytest.fixture
def source(tmp_path) -> Callable[..., Any]:
    def make(texts=TEXTS, **chosen):
        path = tmp_path / "p.jsonl"
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        return open_prompts(path, Selection(**chosen))

    return make


def dump(model, path, rows, **options):
    """Return the results, and the runner, of a dump of the rows."""
    kwargs = {"max_new_tokens": 3, **options}
    with register_hook(model, DumpConfig(path, "all"), tokenizer=Codes()):
        runner = RowRunner(model, Codes(), **kwargs)
        return list(runner.each(rows, "p.jsonl")), runner


def opened(path) -> NativeReader:
    reader = open_dump(path)
    assert isinstance(reader, NativeReader)
    return reader


def logged(path):
    return [json.loads(line) for line in (path / "failures.jsonl").read_text().splitlines()]


# --- numbers --------------------------------------------------------------------------------------


def test_a_run_has_the_number_of_its_row_and_names_it(tiny_llama, tmp_path, source):
    results, _ = dump(tiny_llama(), tmp_path / "d", source(split="train[2:4]"))
    assert [(r.run, r.row, r.prompt.text) for r in results] == [(2, 2, "a"), (3, 3, "fifteen!")]
    with opened(tmp_path / "d") as reader:
        assert reader.runs() == (2, 3)
        info = reader.run_info(3)["prompt"]["source"]
    assert info == {"name": "p.jsonl", "rows": [3], "generate": {"max_new_tokens": 3}}


def test_each_process_takes_its_rows_under_their_numbers(source):
    rows = source()
    shares = [[row.number for row in numbered_rows(rows, rank, 2)] for rank in (0, 1)]
    assert shares == [[0, 2, 4], [1, 3]]


# --- batches --------------------------------------------------------------------------------------


def test_rows_of_a_batch_are_what_single_rows_are(tiny_llama, tmp_path, source):
    model = tiny_llama()
    single, _ = dump(model, tmp_path / "single", source())
    batch, _ = dump(model, tmp_path / "batch", source(), batch_size=2)
    assert [r.text for r in batch] == [r.text for r in single]
    assert [r.run for r in batch] == [0, 0, 2, 2, 4]
    with opened(tmp_path / "single") as alone, opened(tmp_path / "batch") as joined:
        assert [joined.run_info(n)["prompt"]["source"]["rows"] for n in joined.runs()] == [
            [0, 1],
            [2, 3],
            [4],
        ]
        for number, text in enumerate(TEXTS):
            run, row = number - number % 2, number % 2
            places = alone.positions(number).to_pylist(), joined.positions(run).to_pylist()
            mine = [p for p in places[1] if p["row"] == row and p["position"] >= 0]
            assert [p["position"] for p in mine] == [p["position"] for p in places[0]]
            for token in range(3):
                one = alone.load("model.layers.1", "output", token, run=number)[0]
                two = joined.load("model.layers.1", "output", token, run=run, row=row)
                assert token or len(one) == len(text)
                torch.testing.assert_close(two[-len(one) :], one, rtol=0, atol=1e-5)


def test_the_text_of_a_row_ends_where_the_row_does(tiny_llama, tmp_path, source):
    model = tiny_llama()
    whole, _ = dump(model, tmp_path / "d", source(), max_new_tokens=6)
    model.generation_config.eos_token_id = ord(whole[0].text[2])
    ended, _ = dump(model, tmp_path / "e", source(), max_new_tokens=6, batch_size=5)
    assert ended[0].text == whole[0].text[: whole[0].text.index(whole[0].text[2]) + 1]
    assert [r.tokens for r in ended] == [len(r.text) for r in ended]


def test_the_tokens_of_a_batch_are_those_of_the_plain_model(tiny_llama, tmp_path, source):
    model = tiny_llama()
    results, _ = dump(model, tmp_path / "d", source(), batch_size=5)
    with opened(tmp_path / "d") as reader:
        facts = reader.run_info(0)
    inputs = {n: torch.tensor(facts["prompt"][n]) for n in ("input_ids", "attention_mask")}
    plain = tiny_llama().generate(**inputs, max_new_tokens=3)[:, inputs["input_ids"].shape[1] :]
    assert plain.tolist() == facts["generated_ids"]
    assert (
        Codes().batch_decode(plain.tolist()) == [r.text for r in results] == facts["generated_text"]
    )


@pytest.mark.parametrize("kind", ["headless", "pair"])
def test_an_encoder_is_padded_on_the_right(tiny_llama, tmp_path, source, kind):
    if kind == "pair":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=128, decoder_start_token_id=0, eos_token_id=None, **sizes)
        ).eval()
    else:
        model = tiny_llama().model
    results, _ = dump(model, tmp_path / "d", source(), batch_size=2)
    with opened(tmp_path / "d") as reader:
        assert reader.run_info(0)["prompt"]["attention_mask"][0] == [1, 1, 1, 0, 0]
    assert [r.text is None for r in results] == [kind == "headless"] * 5


# --- going on -------------------------------------------------------------------------------------


def test_a_second_start_goes_on_after_what_is_complete(tiny_llama, tmp_path, source):
    model, path = tiny_llama(), tmp_path / "d"
    dump(model, path, source(limit=2))
    before = (path / "runs/000001/run.json").read_bytes()
    results, runner = dump(model, path, source())
    assert ([r.row for r in results], runner.skipped, runner.replaced) == ([2, 3, 4], 2, 0)
    assert (path / "runs/000001/run.json").read_bytes() == before
    with pytest.raises(EmptyDumpError):
        dump(model, path, source())


def test_a_run_cut_off_is_made_again(tiny_llama, tmp_path, source):
    model, path = tiny_llama(), tmp_path / "d"
    dump(model, path, source())
    (path / "runs/000001/run.json").rename(path / "runs/000001/run.partial.json")
    (path / "runs/000003/run.json").write_text("{")
    (path / "runs/000003/stray").touch()
    facts = json.loads((path / "runs/000001/run.partial.json").read_text())
    facts["complete"] = False
    (path / "runs/000001/run.partial.json").write_text(json.dumps(facts))
    results, runner = dump(model, path, source())
    assert ([r.run for r in results], runner.skipped, runner.replaced) == ([1, 3], 3, 2)
    assert not (path / "runs/000003/stray").exists()
    with opened(path) as reader:
        assert all(reader.run_info(run)["complete"] for run in range(5))


def test_another_batch_size_goes_on_as_well(tiny_llama, tmp_path, source):
    model, path = tiny_llama(), tmp_path / "d"
    dump(model, path, source(limit=3), batch_size=3)
    results, runner = dump(model, path, source(), batch_size=4)
    assert ([(r.run, r.row) for r in results], runner.skipped) == ([(3, 3), (3, 4)], 3)


def test_the_msit_layout_goes_on_too(tiny_llama, tmp_path, source):
    model, config = tiny_llama(), DumpConfig(tmp_path / "m", layout="msit")
    for rows, done in ((source(limit=2), [0, 1]), (source(limit=4), [2, 3])):
        with register_hook(model, config):
            runner = RowRunner(model, Codes(), max_new_tokens=1)
            assert [r.run for r in runner.each(rows, "p")] == done
            facts = next(tmp_path.glob("m/*_1/hf_dumper/run.json"))
    facts.unlink()
    with register_hook(model, config):
        runner = RowRunner(model, Codes(), max_new_tokens=1)
        assert [r.run for r in runner.each(source(limit=4), "p")] == [1]
    assert (runner.skipped, runner.replaced) == (3, 1)


@pytest.mark.parametrize(
    ("texts", "options", "match"),
    [
        (["one", "other"], {}, "Run 1 of .* was made of another prompt than row 1 is now"),
        (["one", "three"], {"max_new_tokens": 4}, "Run 0 of .* other options"),
        (["one", "three"], {"do_sample": True}, "Run 0 of .* other options"),
    ],
)
def test_what_is_there_must_be_of_the_same_rows(
    tiny_llama, tmp_path, source, texts, options, match
):
    model, path = tiny_llama(), tmp_path / "d"
    dump(model, path, source(limit=2))
    with pytest.raises(DumpIdentityError, match=match):
        dump(model, path, source(texts), **options)
    with opened(path) as reader:
        assert [reader.run_info(run)["complete"] for run in reader.runs()] == [True, True]


def test_a_run_that_is_of_no_row_is_not_replaced(tiny_llama, tmp_path, source):
    model, path = tiny_llama(), tmp_path / "d"
    with register_hook(model, DumpConfig(path, "all")):
        model.generate(torch.tensor([[5]]), max_new_tokens=1)
    with pytest.raises(DumpIdentityError, match=r"Run 0 of .* something else than row 0"):
        dump(model, path, source())
    with opened(path) as reader:
        assert reader.run_info(0)["complete"]


def other(tmp_path, name, texts, **chosen):
    (tmp_path / name).write_text("".join(json.dumps({"prompt": t, "q": t}) + "\n" for t in texts))
    options = {k: chosen.pop(k) for k in ("column", "template") if k in chosen}
    return open_prompts(tmp_path / name, Selection(**chosen), **options)


@pytest.mark.parametrize(
    ("name", "options", "generation", "match"),
    [
        ("other.jsonl", {}, {}, "was made of '.*first.jsonl', not of '.*other.jsonl'"),
        ("first.jsonl", {"column": "q"}, {}, "rows with column 'prompt', not 'q'"),
        ("first.jsonl", {"template": "{q}"}, {}, "rows with column 'prompt', not None"),
        ("first.jsonl", {}, {"max_new_tokens": 4}, "rows with generate {.*}, not {.*4}"),
    ],
)
def test_further_rows_must_be_of_the_same_data_set(
    tiny_llama, tmp_path, name, options, generation, match
):
    """A number alone says which row it is, also where the rows of two starts do not meet."""

    def start(rows, **kwargs):
        model = tiny_llama()
        with register_hook(model, DumpConfig(tmp_path / "d")):
            dump_rows(model, Codes(), rows, **{"max_new_tokens": 2, **kwargs})

    start(other(tmp_path, "first.jsonl", TEXTS, split="train[:2]", column="prompt"))
    rows = other(tmp_path, name, TEXTS, split="train[2:]", **(options or {"column": "prompt"}))
    with pytest.raises(DumpIdentityError, match=match):
        start(rows, **generation)
    with opened(tmp_path / "d") as reader:
        assert reader.runs() == (0, 1)


def test_rows_in_another_order_and_of_a_file_that_grew_go_on(tiny_llama, tmp_path):
    model, texts = tiny_llama(), [*TEXTS, "one", "one"]
    for chosen in ({"shuffle": 3, "limit": 4}, {"shuffle": 3}, {"streaming": True, "shuffle": 5}):
        with register_hook(model, DumpConfig(tmp_path / "d")):
            rows = other(tmp_path, "p.jsonl", texts, **chosen)
            dump_rows(model, Codes(), rows, max_new_tokens=2, batch_size=3)
        texts.append("more")
    with opened(tmp_path / "d") as reader:
        infos = [reader.run_info(run)["prompt"] for run in reader.runs()]
    found = {
        number: "".join(chr(i) for i, m in zip(ids, mask, strict=True) if m)
        for info in infos
        for number, ids, mask in zip(
            info["source"]["rows"],
            info["input_ids"],
            info["attention_mask"] or [[1] * len(info["input_ids"][0])],
            strict=True,
        )
    }
    assert found == dict(enumerate(texts[:-1]))
    assert {info["source"]["chosen"]["shuffle"] for info in infos} == {3, 5}


def test_a_pad_token_without_an_embedding_is_not_used(tiny_llama, tmp_path, source):
    class Padded(Codes):
        pad_token_id = 5000

    model = tiny_llama()
    with register_hook(model, DumpConfig(tmp_path / "d"), tokenizer=Codes()):
        runner = RowRunner(model, Padded(), max_new_tokens=2, batch_size=9)
        assert len(list(runner.each(source(), "p.jsonl"))) == len(TEXTS)
    assert runner.failures == []
    single, _ = dump(tiny_llama(), tmp_path / "e", source(), max_new_tokens=2)
    with opened(tmp_path / "d") as reader:
        assert reader.run_info(0)["generated_text"] == [result.text for result in single]


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_row_that_fails_is_noted_and_left_out(tiny_llama, tmp_path, source, batch_size):
    model, path = tiny_llama(), tmp_path / "d"
    breaking = Breaking(model, "!")
    texts = [*TEXTS, " "]
    results, runner = dump(model, path, source(texts), batch_size=batch_size)
    assert [r.row for r in results] == [0, 1, 2, 4]
    noted = {failure.row: failure.error for failure in runner.failures}
    assert noted[3] == "RuntimeError: too much for me"
    assert "Row 5" in noted[5]
    assert "blank text" in noted[5]
    assert {entry["row"]: entry["error"] for entry in logged(path)} == noted
    breaking.is_on = False
    results, runner = dump(model, path, source(texts), batch_size=batch_size)
    assert [r.row for r in results] == [3]
    assert [failure.row for failure in runner.failures] == [5]
    with opened(path) as reader:
        assert all(reader.run_info(run)["complete"] for run in reader.runs())


def test_overwriting_removes_the_failures_too(tiny_llama, tmp_path, source):
    model, path = tiny_llama(), tmp_path / "d"
    dump(model, path, source(["a", " "]))
    assert len(logged(path)) == 1
    with register_hook(model, DumpConfig(path, overwrite=True)):
        assert not (path / "failures.jsonl").exists()
        model.generate(torch.tensor([[5]]), max_new_tokens=1)


def test_an_error_of_the_dump_is_no_failure_of_a_row(tiny_llama, tmp_path, source):
    model, path = tiny_llama(), tmp_path / "d"
    config = DumpConfig(path, on_error="raise", max_bytes=1 << 20)
    with register_hook(model, config) as session:
        session._dump._directory._max_bytes = 1
        runner = RowRunner(model, Codes(), max_new_tokens=1)
        with pytest.raises(OSError, match="max_bytes=1 is reached"):
            list(runner.each(source(), "p"))
        session._dump._directory._max_bytes = None
        model.generate(torch.tensor([[5]]), max_new_tokens=1)
    assert runner.failures == []


def test_progress_counts_what_is_behind(tiny_llama, tmp_path, source):
    seen: list[tuple[int, int]] = []
    kwargs = {"batch_size": 2, "max_new_tokens": 2, "on_progress": lambda *now: seen.append(now)}
    dump(tiny_llama(), tmp_path / "d", source(["a", " ", "b", "c"]), **kwargs)
    assert seen == [(1, 2), (1, 4), (3, 1), (3, 2)]


def test_dump_rows_does_all_it_can_and_then_tells(tiny_llama, tmp_path, source):
    model = tiny_llama()
    with register_hook(model, DumpConfig(tmp_path / "d")) as session:
        with pytest.raises(PromptError, match=r"1 of the rows of .*, row 1 first: Row 1 "):
            dump_rows(model, Codes(), source(["a", " ", "b"]), max_new_tokens=1)
        assert session.runs == (0, 2)
        assert dump_rows(model, Codes(), source(["a"]), max_new_tokens=1) == []


def test_the_first_batch_passes_over_rows_without_a_prompt(tiny_llama, source):
    runner = RowRunner(tiny_llama(), Codes(), batch_size=2)
    inputs = runner.first(source([" ", "abc", "d", "e"]))
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    with pytest.raises(PromptError, match="Row 0"):
        runner.first(source([" "]))
