"""What the model predicts inside a prompt: right, kept, printed, and no trouble to the dump."""

import csv
import json

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from hf_dumper import DumpConfig, ModelError, open_dump, register_hook
from hf_dumper.cli.failures import DONE, IMPOSSIBLE
from hf_dumper.diagnose import predict_prompt, predict_run
from hf_dumper.store.convert import convert
from hf_dumper.store.kept import read_predictions
from tests.commands import opened, run_tiny, save_model

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))
FULL = torch.ones_like(IDS)
LEFT = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


def test_every_position_has_the_candidates_of_a_plain_forward(model):
    with torch.no_grad():
        share = model(IDS, use_cache=False).logits.double().softmax(-1)
    rows = predict_prompt(model, IDS, FULL).to_pylist()
    assert [(r["row"], r["column"]) for r in rows] == [(r, c) for r in (0, 1) for c in range(7)]
    for row in rows:
        own = share[row["row"], row["column"]]
        assert row["id"] == IDS[row["row"], row["column"]]
        assert own[row["top_ids"]].tolist() == own.topk(5).values.tolist()
        assert row["top_probabilities"] == pytest.approx(own.topk(5).values.tolist(), rel=1e-5)
        if row["column"] == 6:
            assert row["next_id"] is row["next_probability"] is row["next_rank"] is None
        else:
            following = IDS[row["row"], row["column"] + 1].item()
            assert row["next_id"] == following
            assert row["next_probability"] == pytest.approx(own[following].item(), rel=1e-5)
            assert row["next_rank"] == 1 + (own > own[following]).sum().item()


@pytest.mark.parametrize("layout", ["native", "msit"])
@pytest.mark.parametrize("to", ["native", "msit"])
def test_they_are_kept_in_both_layouts_and_converted(model, tmp_path, layout, to):
    with register_hook(model, DumpConfig(tmp_path / "d", layout=layout)) as session:
        model.generate(IDS, attention_mask=FULL, max_new_tokens=1)
        model(IDS)
        want = predict_run(session, model, 0)
    with open_dump(tmp_path / "d") as reader:
        convert(reader, tmp_path / "other", to)
    for path in (tmp_path / "d", tmp_path / "other"):
        assert want.equals(read_predictions(path, 0))
        assert read_predictions(path, 1) is None


def test_numpy_users_get_them_and_the_trace_as_tables(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path / "d")) as session:
        model.generate(IDS, attention_mask=FULL, max_new_tokens=2)
        want = {"prompt_predictions": predict_run(session, model, 0).to_pylist()}
    with open_dump(tmp_path / "d") as reader:
        want["trace"] = reader.trace().to_pylist()
        convert(reader, tmp_path / "npy", "npy")
    for name, rows in want.items():
        with (tmp_path / "npy" / "run_000000" / f"{name}.csv").open(newline="") as file:
            found = list(csv.DictReader(file))
        for got, row in zip(found, rows, strict=True):
            plain = {k: "" if v is None else v for k, v in row.items()}
            assert got == {k: str(v) for k, v in plain.items()}


def test_padding_is_left_out_and_changes_nothing(model):
    alone = predict_prompt(model, IDS[:1, 3:], FULL[:1, 3:]).to_pylist()
    rows = [r for r in predict_prompt(model, IDS, LEFT).to_pylist() if not r["row"]]
    assert [r["column"] for r in rows] == [3, 4, 5, 6]
    assert [r["position"] for r in rows] == [r["position"] for r in alone] == [0, 1, 2, 3]
    assert [r["top_ids"] for r in rows] == [r["top_ids"] for r in alone]


def test_the_dump_and_the_random_numbers_are_not_disturbed(model, tmp_path):
    options = {"attention_mask": FULL, "max_new_tokens": 3, "do_sample": True}
    torch.manual_seed(3)
    want = [model.generate(IDS, **options) for _ in range(2)]
    with register_hook(model.train(False), DumpConfig(tmp_path, "all")) as session:
        torch.manual_seed(3)
        got = [model.generate(IDS, **options)]
        table = predict_run(session, model, 0)
        got.append(model.generate(IDS, **options))
        assert session.runs == (0, 1)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    assert read_predictions(tmp_path, 0).equals(table)
    assert read_predictions(tmp_path, 1) is None
    with open_dump(tmp_path) as reader:
        assert reader.run_info(0)["complete"]
        assert len(reader.index(0)) == len(reader.index(1))


def test_an_encoder_decoder_is_refused():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(vocab_size=128, **sizes))
    with pytest.raises(ModelError, match="encodes it"):
        predict_prompt(model, IDS, FULL)


def test_a_model_without_a_head_is_refused(model):
    with pytest.raises(ModelError, match="no logits"):
        predict_prompt(model.model, IDS, FULL)


def test_the_command_prints_and_keeps_them(place, cli):
    status, out, err = cli(*run_tiny("--prompt-predictions"))
    assert (status, err) == (DONE, "")
    assert out.count(" → ") == 1 + 3  # the answer, and the three tokens of "one"
    assert '"o" → ' in out
    assert out.count("(follows: ") == 2
    assert len(read_predictions(place / "d", 0)) == 3
    assert opened(place / "d").runs() == (0,)
    status, out, _ = cli("trace", "d")
    assert status == DONE
    assert "After each token of the prompt the model expects:" in out
    assert '"o" → ' in out


@pytest.mark.parametrize("layout", ["native", "msit"])
def test_json_has_them(place, cli, layout):
    status, out, _ = cli(*run_tiny("--prompt-predictions", "--json", "--layout", layout))
    assert status == DONE
    (run,) = json.loads(out)["runs"]
    assert [row["text"] for row in run["prompt_predictions"]] == ["o", "n", "e"]
    _, out, _ = cli("trace", "d", "--json")
    assert json.loads(out)["prompt_predictions"] == run["prompt_predictions"]


def test_without_the_option_there_are_none(place, cli):
    assert cli(*run_tiny())[0] == DONE
    assert read_predictions(place / "d", 0) is None
    assert json.loads(cli("trace", "d", "--json")[1])["prompt_predictions"] is None


def test_the_command_refuses_an_encoder_decoder_before_anything_is_dumped(place, cli):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(vocab_size=128, decoder_start_token_id=0, **sizes))
    save_model(model, place / "t5")
    status, _, err = cli("run", "t5", "--prompt", "x", "--prompt-predictions", "--dump", "d")
    assert status == IMPOSSIBLE
    assert "encodes it" in err
    assert not (place / "d").exists()
