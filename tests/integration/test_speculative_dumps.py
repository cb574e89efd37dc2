"""Dumps of speculative decoding: what can be read, compared, verified and made again of them."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria, T5Config, T5ForConditionalGeneration

from hf_dumper import (
    CaptureError,
    DumpConfig,
    DumpIncompleteWarning,
    FollowTokens,
    KeyNotFoundError,
    TokenNeverReachedWarning,
    UnsupportedGenerationError,
    compare,
    open_dump,
    register_hook,
)
from hf_dumper.diagnose.rerun import rerun
from hf_dumper.store.convert import convert
from hf_dumper.store.verify import verify_dump
from tests.speculation import constant, perturb

IDS = torch.randint(5, 128, (1, 7), generator=torch.Generator().manual_seed(0)).repeat(1, 2)
PROMPT, NEW = IDS.shape[1], 24
PLAIN = {"max_new_tokens": NEW, "do_sample": False}
LOOKUP = PLAIN | {"prompt_lookup_num_tokens": 4}
OUTPUTS = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


@pytest.fixture
def assisted(tiny_llama):
    """Return options with a fresh assistant, which is right at times."""

    def make(noise=0.05, **options):
        return PLAIN | {"assistant_model": constant(perturb(tiny_llama(), noise))} | options

    return make


def dumped(model, path, options, tokens="all", **config):
    with register_hook(model, DumpConfig(path, tokens, **config)):
        return model.generate(IDS, **options)


def verified(path):
    """Return [forward, token, drafted, accepted] of a run."""
    with open_dump(path) as reader:
        return reader.run_info(0)["speculation"]["verified"]


# --- what is recorded -----------------------------------------------------------------------------


def test_the_last_logits_are_those_of_each_accepted_token(model, assisted, tmp_path):
    plain = model.generate(IDS, **assisted(repetition_penalty=1.2) | OUTPUTS)
    dumped(model, tmp_path, assisted(repetition_penalty=1.2), dump_last_logits=True)
    with open_dump(tmp_path) as reader:
        assert {row["slot"] for row in reader.index(0).to_pylist()} == {
            *("logits", "scores", "token_ids")
        }
        for token in range(NEW):
            assert torch.equal(reader.load("root", "logits", token), plain.logits[token])
            assert torch.equal(reader.load("root", "scores", token), plain.scores[token])
            chosen = reader.load("root", "token_ids", token)
            assert torch.equal(chosen, plain.sequences[:, PROMPT + token])
    assert not torch.equal(plain.logits[0], plain.scores[0])
    assert any(accepted for *_, accepted in verified(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_last_logits_keep_the_type_of_the_model(model, tmp_path, dtype):
    model.to(dtype)
    plain = model.generate(IDS, **LOOKUP | OUTPUTS)
    dumped(model, tmp_path, LOOKUP, dump_last_logits=True)
    with open_dump(tmp_path) as reader:
        for token in range(NEW):
            got = reader.load("root", "logits", token)
            assert got.dtype is dtype
            assert torch.equal(got.float(), plain.logits[token])


def test_the_cache_is_what_each_token_added(model, assisted, tmp_path):
    dumped(model, tmp_path / "plain", PLAIN, dump_kv_cache=True)
    dumped(model, tmp_path / "spec", assisted(), dump_kv_cache=True)
    with open_dump(tmp_path / "plain") as plain, open_dump(tmp_path / "spec") as spec:
        for token in range(NEW):
            for slot in ("kv.0.key", "kv.1.value"):
                want = plain.load("root", slot, token)[:, :, -1]
                got = spec.load("root", slot, token)[:, :, -1]
                assert torch.allclose(got, want, atol=1e-4)


def test_a_forward_is_recorded_if_it_may_decide_a_selected_token(model, tmp_path):
    dumped(model, tmp_path / "all", LOOKUP)
    wanted = {1, 8}
    with pytest.warns(TokenNeverReachedWarning):
        dumped(model, tmp_path / "some", LOOKUP, [*wanted, 99])
    expected = {
        f
        for f, t, drafted, _ in verified(tmp_path / "all")
        if wanted & {*range(t, t + drafted + 1)}
    }
    assert expected
    with open_dump(tmp_path / "all") as whole, open_dump(tmp_path / "some") as some:
        assert {row["forward"] for row in some.index(0).to_pylist()} == expected
        for token in wanted:
            names = ("model.layers.1.mlp", "output", token)
            assert torch.equal(some.load(*names), whole.load(*names))
        assert verified(tmp_path / "some") == verified(tmp_path / "all")
        assert some.trace(0).num_rows == NEW


def test_a_forward_comes_whole_when_it_is_named(model, tmp_path):
    dumped(model, tmp_path, LOOKUP)
    forward, token, drafted, accepted = next(v for v in verified(tmp_path) if v[1] and v[3])
    with open_dump(tmp_path) as reader:
        whole = reader.load("model.layers.0", token=token + 1, forward=forward)
        assert whole.shape[1] == drafted + 1
        for i in range(accepted + 1):
            part = reader.load("model.layers.0", token=token + i)
            assert torch.equal(part, whole[:, : i + 1])
        assert reader.load("model.layers.0", token=token + 1, row=0).shape == (2, 64)
        with pytest.raises(KeyNotFoundError):
            reader.load("model.layers.0", token=NEW)


@pytest.mark.parametrize("noise", [0.05, 0.0])
def test_an_end_token_among_the_drafts_ends_the_row(model, assisted, tmp_path, noise):
    """What was drafted after it counts as rejected."""
    plain = model.generate(IDS, **assisted(noise))[0, PROMPT:].tolist()
    dumped(model, tmp_path / "whole", assisted(noise))
    _, token, _, _ = next(
        v for v in verified(tmp_path / "whole") if v[3] and plain[v[1]] not in plain[: v[1]]
    )
    options = assisted(noise) | {"eos_token_id": plain[token], "pad_token_id": 0}
    want = model.generate(IDS, **options)
    options = assisted(noise) | {"eos_token_id": plain[token], "pad_token_id": 0}
    assert torch.equal(dumped(model, tmp_path / "ended", options), want)
    assert want.shape[1] == PROMPT + token + 1
    with open_dump(tmp_path / "ended") as reader:
        info = reader.run_info(0)
        assert info["ended"] == [{"token": token, "reason": "end of sequence", "id": plain[token]}]
        last = info["speculation"]["verified"][-1]
        assert last[1] + last[3] == token
        positions = reader.positions(0).filter(pa.compute.field("forward") == last[0])
        assert sum(p < -1 for p in positions["position"].to_pylist()) == last[2] - last[3]


def test_embeddings_may_be_the_prompt(model, tmp_path):
    embeds = model.get_input_embeddings()(IDS).detach()
    options = LOOKUP | {"inputs_embeds": embeds, "max_new_tokens": 48}
    want = model.generate(**options)
    with register_hook(model, DumpConfig(tmp_path, "all")):
        assert torch.equal(model.generate(**options), want)
    with open_dump(tmp_path) as reader:
        facts = reader.run_info(0)["speculation"]
        assert facts["drafted"] > facts["accepted"] >= 0
        positions = [p for p in reader.positions(0)["position"].to_pylist() if p >= 0]
        assert positions == list(range(PROMPT + want.shape[1] - 1))


@pytest.mark.parametrize("drafter", ["lookup", "assistant"])
def test_an_encoder_decoder_is_followed(tmp_path, drafter):
    def t5():
        torch.manual_seed(1)
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        config = T5Config(vocab_size=128, decoder_start_token_id=0, eos_token_id=None, **sizes)
        return T5ForConditionalGeneration(config).eval()

    def options():
        if drafter == "lookup":
            return LOOKUP
        return PLAIN | {"assistant_model": constant(perturb(t5(), 0.5))}

    model = t5()
    want = model.generate(IDS, **options() | OUTPUTS)
    got = dumped(model, tmp_path, options() | OUTPUTS)
    assert torch.equal(got.sequences, want.sequences)
    with open_dump(tmp_path) as reader:
        info = reader.run_info(0)
        assert info["complete"]
        assert info["speculation"]["drafted"] >= info["speculation"]["accepted"] > 0
        positions = [p for p in reader.positions(0)["position"].to_pylist() if p >= 0]
        assert positions == list(range(NEW))
        assert {k.forward for k in reader.keys(module="encoder")} == {0}
        for token in range(NEW):
            logits = reader.load("root", "output.logits", token)[:, -1]
            assert torch.equal(logits, want.logits[token])


def test_an_assistant_may_be_dumped_too(model, assisted, tmp_path):
    want = model.generate(IDS, **assisted())
    options = assisted()
    with register_hook(options["assistant_model"], DumpConfig(tmp_path / "assistant", "all")):
        assert torch.equal(dumped(model, tmp_path / "model", options), want)
    with open_dump(tmp_path / "assistant") as reader:
        assert len(reader.runs()) == len([v for v in verified(tmp_path / "model") if v[2]])
        assert all(reader.run_info(run)["complete"] for run in reader.runs())
    dumped(model, tmp_path / "alone", assisted())
    assert verified(tmp_path / "model") == verified(tmp_path / "alone")


def test_the_compiled_hooks_and_their_twin_record_the_same(model, tmp_path, monkeypatch):
    dumped(model, tmp_path / "a", LOOKUP)
    monkeypatch.setenv("HF_DUMPER_PURE_PYTHON", "1")
    dumped(model, tmp_path / "b", LOOKUP)
    result = compare(tmp_path / "a", tmp_path / "b")
    assert result.verdict == "identical"


def test_drafts_of_the_model_itself_are_counted_and_not_recorded(model, tmp_path):
    constant(model)
    begun = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda *_: begun.append(1))
    dumped(model, tmp_path, PLAIN | {"assistant_early_exit": 1})
    handle.remove()
    with open_dump(tmp_path) as reader:
        skipped = reader.run_info(0)["counts"]["skipped_by_reason"]
        forwards = reader.run_info(0)["speculation"]["forwards"]
    assert skipped["a forward of the model that drafts"] == len(begun) - forwards > 0


# --- what goes wrong ------------------------------------------------------------------------------


class Fails(LogitsProcessor):
    """Raises at its n-th call."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self, input_ids, scores):
        self.left -= 1
        if not self.left:
            msg = "on purpose"
            raise RuntimeError(msg)
        return scores


@pytest.mark.parametrize("calls", [1, 3, 7, 30])
@pytest.mark.parametrize("early", [False, True])
def test_an_error_ends_the_run_and_leaves_nothing_behind(model, tmp_path, calls, early):
    options = PLAIN | {"assistant_early_exit": 1} if early else LOOKUP
    constant(model)
    before = set(model.__dict__)
    want = model.generate(IDS, **LOOKUP)
    with register_hook(model, DumpConfig(tmp_path, "all")) as session:
        with pytest.raises(RuntimeError, match="on purpose"):
            model.generate(IDS, **options, logits_processor=[Fails(calls)])
        model.config.num_hidden_layers = 2  # which early exit does not put back
        assert torch.equal(model.generate(IDS, **LOOKUP), want)
        assert session.runs == (0, 1)
    assert set(model.__dict__) - before == {"dump"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with open_dump(tmp_path) as reader:
        assert [reader.run_info(run)["complete"] for run in (0, 1)] == [False, True]
    assert not verify_dump(tmp_path).problems


def test_following_tokens_is_refused(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)):
        with pytest.raises(UnsupportedGenerationError, match="FollowTokens"):
            model.generate(IDS, **LOOKUP, logits_processor=[FollowTokens([[5, 6]])])
        model(IDS)


def test_another_way_to_draft_is_refused(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        with pytest.raises(UnsupportedGenerationError, match="speculative"):
            model.generate(IDS, **PLAIN, use_mtp=True)
        assert session.runs == ()
        model(IDS)


def test_a_pause_dumps_nothing(model, tmp_path):
    want = model.generate(IDS, **PLAIN, assistant_early_exit=1)
    with register_hook(model, DumpConfig(tmp_path)) as session:
        with session.pause():
            assert torch.equal(model.generate(IDS, **PLAIN, assistant_early_exit=1), want)
        assert session.runs == ()
        model(IDS)


def test_more_tokens_than_were_drafted_are_an_error_of_the_dump(model, tmp_path, monkeypatch):
    """As they would be, should transformers verify in another way one day."""
    monkeypatch.setattr("hf_dumper.capture.clock.drafted_columns", lambda *_: 0)
    want = model.generate(IDS, **LOOKUP)
    with pytest.warns(DumpIncompleteWarning, match="not known"):
        assert torch.equal(dumped(model, tmp_path / "warned", LOOKUP), want)
    with pytest.raises(CaptureError, match="not known"):
        dumped(model, tmp_path / "raised", LOOKUP, on_error="raise")


class Copies(StoppingCriteria):
    """Copies the dump's folder when so many forwards are over: as a kill would leave it."""

    def __init__(self, session, forwards, to):
        self.session, self.left, self.to = session, forwards, to

    def __call__(self, input_ids, scores, **kwargs):
        self.left -= 1
        if not self.left:
            self.session._dump.flush()
            shutil.copytree(self.session.path, self.to)
        return torch.zeros(1, dtype=torch.bool)


@pytest.mark.parametrize("forwards", [2, 6, 9])
def test_a_run_that_was_cut_off_is_read_token_by_token(model, assisted, tmp_path, forwards):
    cut = tmp_path / "cut"
    with register_hook(model, DumpConfig(tmp_path / "whole", "all")) as session:
        model.generate(IDS, **assisted(), stopping_criteria=[Copies(session, forwards, cut)])
    decided = [v for v in verified(tmp_path / "whole") if v[0] < forwards - 1]
    assert sum(v[3] for v in decided) or forwards == 2
    with open_dump(tmp_path / "whole") as whole, open_dump(cut) as reader:
        assert not reader.run_info(0)["complete"]
        last = max(row["forward"] for row in reader.index(0).to_pylist())
        assert last >= forwards - 2
        for _, token, _, accepted in verified(tmp_path / "whole")[: last + 1]:
            for i in range(accepted + 1):
                names = ("model.layers.1", "output", token + i)
                if not last:
                    with pytest.raises(KeyNotFoundError, match="cut off"):
                        reader.load(*names)
                else:
                    assert torch.equal(reader.load(*names), whole.load(*names))


# --- what is made of it ---------------------------------------------------------------------------


def test_a_dump_is_intact_until_a_position_is_changed(model, tmp_path):
    dumped(model, tmp_path, LOOKUP)
    assert not verify_dump(tmp_path).problems
    file = tmp_path / "runs" / "000000" / "rank-0" / "positions.parquet"
    table = pq.read_table(file)
    positions = table["position"].to_pylist()
    positions[next(i for i, p in enumerate(positions) if p < -1)] = 3
    column = pa.array(positions, pa.int32())
    pq.write_table(table.set_column(3, "position", column), file)
    assert "rejected drafts" in str(verify_dump(tmp_path).problems)


@pytest.mark.parametrize("to", ["msit", "npy"])
def test_other_layouts_hold_the_same(model, assisted, tmp_path, to):
    dumped(model, tmp_path / "native", assisted(), dump_last_logits=False)
    with open_dump(tmp_path / "native") as reader:
        convert(reader, tmp_path / "other", to)
    if to == "npy":
        assert (tmp_path / "other" / "run_000000" / "positions.csv").exists()
        return
    with open_dump(tmp_path / "native") as native, open_dump(tmp_path / "other") as other:
        assert native.positions(0).equals(other.positions(0))
        assert native.trace(0).equals(other.trace(0))
        convert(other, tmp_path / "back", "native")
        with open_dump(tmp_path / "back") as back:
            for token in range(NEW):
                want = native.load("model.layers.1", token=token)
                assert torch.equal(other.load("model.layers.1", token=token), want)
                assert torch.equal(back.load("model.layers.1", token=token), want)
    assert compare(tmp_path / "native", tmp_path / "back").verdict == "identical"


def test_the_same_bits_come_again_where_the_drafter_is_known(model, assisted, tmp_path):
    dumped(model, tmp_path / "lookup", LOOKUP)
    assert rerun(tmp_path / "lookup", model).verdict == "equal"
    dumped(model, tmp_path / "assistant", assisted())
    (again,) = rerun(tmp_path / "assistant", model).runs
    assert "assistant model" in again.why_not


def test_a_trace_of_an_earlier_release_is_read(model, tmp_path):
    dumped(model, tmp_path, PLAIN)
    file = tmp_path / "runs" / "000000" / "trace.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["drafted", "accepted"]), file)
    with open_dump(tmp_path) as reader:
        assert reader.trace(0)["drafted"].to_pylist() == [None] * NEW
    pq.write_table(pq.read_table(file).drop_columns(["chosen_id"]), file)
    with open_dump(tmp_path) as reader, pytest.raises(Exception, match="no table of this format"):
        reader.trace(0)


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def drafting(place, cli):
    """Dump a model whose own configuration says that it drafts; return its verifying forwards."""
    folder = place / "tiny"
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"prompt_lookup_num_tokens": 4, "max_new_tokens": NEW}
    (folder / "generation_config.json").write_text(json.dumps(config))
    run = ("run", "tiny", "--prompt", "one two one two one two", "--token-range", "all")
    status, out, _ = cli(*run, "--max-new-tokens", NEW, "--dump", "g")
    assert status == 0
    assert f"tokens 0-{NEW - 1}." in out
    return verified(place / "g")


def test_every_token_is_shown_by_its_number(drafting, cli):
    forward, token, drafted, accepted = next(v for v in drafting if v[3])
    where = ("--token", token + 1)
    status, out, _ = cli("show", "g", "model.layers.0", "--slot", "output", *where)
    assert status == 0
    assert f"{token + 1} (run 0, forward {forward}, call 0)" in out
    assert "(1, 2, 64)" in out or not forward
    status, out, _ = cli("inspect", "g", "--lines", *where)
    assert status == 0
    assert "Layer model.layers.0 output" in out
    status, out, _ = cli("inspect", "g", "--lines", "--token", NEW)
    assert status == 2
    out = cli("trace", "g")[1]
    assert f"{accepted} of {drafted} draft" in out
    assert cli("verify", "g", "--rerun")[0] == 0


def test_its_tokens_are_followed_one_at_a_time(drafting, place, cli):
    assert any(v[3] for v in drafting)
    assert cli("run", "tiny", "--follow", "g", "--dump", "c")[0] == 0
    with open_dump(place / "c") as reader:
        assert "speculation" not in reader.run_info(0)
    status, out, _ = cli("compare", "g", "c")
    assert status == 0
    assert out.startswith("PASS")
