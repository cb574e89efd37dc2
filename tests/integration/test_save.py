"""`model.dump.save`: tensors of the user, under the token and the module in progress."""

import threading

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria

from hf_dumper import CaptureError, DumpConfig, open_dump, register_hook
from hf_dumper.core.types import ALIASED, STORED

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))
PLAIN = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 3, "do_sample": False}

pytestmark = pytest.mark.usefixtures("kind_of_hooks")


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


def saving(module, save, at="output"):
    """Let a module's own forward call `save(value)` with what it is given or returns."""
    forward = module.forward

    def with_save(*args, **kwargs):
        if at == "input":
            save(args[0] if args else kwargs["hidden_states"])
        result = forward(*args, **kwargs)
        if at == "output":
            save(result)
        return result

    module.forward = with_save


def saved(reader, run=0):
    rows = reader.index(run).to_pylist()
    return [row for row in rows if row["slot"].startswith("saved.")]


def test_a_tensor_is_under_the_module_and_the_token_in_progress(model, tmp_path):
    want, got = model.generate(IDS, **PLAIN), []
    mlp = model.model.layers[1].mlp
    with register_hook(model, DumpConfig(tmp_path, "all")) as session:

        def save(value):
            got.append(value.detach() + 1)
            assert session.save("mine", got[-1])

        saving(mlp, save)
        assert torch.equal(model.generate(IDS, **PLAIN), want)
    with open_dump(tmp_path) as reader:
        rows = saved(reader)
        where = [(r["module"], r["class"], r["slot"], r["token"], r["call"]) for r in rows]
        assert where == [("model.layers.1.mlp", "LlamaMLP", "saved.mine", t, 0) for t in range(3)]
        for token, tensor in enumerate(got):
            assert torch.equal(reader.load("model.layers.1.mlp", "saved.mine", token), tensor)
        assert reader.run_info()["complete"]


def test_a_module_that_is_not_selected_may_save(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path, layer_name="lm_head")) as session:
        saving(model.model.layers[0].self_attn.q_proj, lambda value: session.save("q", value))
        model.generate(IDS, **PLAIN)
    with open_dump(tmp_path) as reader:
        (row,) = saved(reader)
        assert row["module"] == "model.layers.0.self_attn.q_proj"
        assert row["axes"] == "row,pos,-"


def test_after_a_module_returned_its_parent_is_in_progress(model, tmp_path):
    layer = model.model.layers[0]
    with register_hook(model, DumpConfig(tmp_path)) as session:
        saving(layer, lambda value: session.save("early", value), at="input")
        saving(layer, lambda value: session.save("late", value))
        model(IDS)
    with open_dump(tmp_path) as reader:
        assert {row["module"] for row in saved(reader)} == {"model.layers.0"}
        out = reader.load("model.layers.0", "output")
        assert torch.equal(reader.load("model.layers.0", "saved.late"), out)


def test_saving_a_name_again_is_numbered_and_nothing_is_lost(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path, "all")) as session:

        def save(value):
            for factor in range(3):
                session.save("x", value * factor)
            session.save("y", value)

        saving(model.model.norm, save)
        model.generate(IDS, **PLAIN)
    with open_dump(tmp_path) as reader:
        for token in range(3):
            out = reader.load("model.norm", "output", token)
            for factor in range(3):
                x = reader.load("model.norm", "saved.x", token, call=factor)
                assert torch.equal(x, out * factor)
            assert torch.equal(reader.load("model.norm", "saved.y", token), out)


def test_outside_of_any_module_the_root_stands_for_it(model, tmp_path):
    class Keeps(LogitsProcessor):
        def __call__(self, input_ids, scores):
            assert session.save("scores", scores)
            return scores

    with register_hook(model, DumpConfig(tmp_path, "all")) as session:
        model.generate(IDS, **PLAIN, logits_processor=[Keeps()])
    with open_dump(tmp_path) as reader:
        assert [(r["module"], r["token"]) for r in saved(reader)] == [("root", t) for t in range(3)]
        logits = reader.load("root", "output.logits", 1)[:, -1]
        assert torch.equal(reader.load("root", "saved.scores", 1), logits)


@pytest.mark.parametrize("options", [{"token_range": [1]}, {"token_range": [1], "seed": 1}])
def test_tokens_that_are_not_selected_are_not_recorded_and_the_answer_says_so(
    model, tmp_path, options
):
    answers = []
    with register_hook(model, DumpConfig(tmp_path, **options)) as session:
        saving(model.model.norm, lambda value: answers.append(session.save("x", value)))
        model.generate(IDS, **PLAIN)
    assert answers == [False, True, False]
    with open_dump(tmp_path) as reader:
        assert [row["token"] for row in saved(reader)] == [1]


def test_the_bytes_are_those_of_the_moment_and_the_tensor_is_not_altered(model, tmp_path):
    mine = torch.arange(6.0).reshape(2, 3)
    with register_hook(model, DumpConfig(tmp_path)) as session:

        def save(_value):
            session.save("mine", mine)
            session.save("turned", mine.t())
            mine.add_(1)

        saving(model.model.norm, save)
        model(IDS)
    assert torch.equal(mine, torch.arange(6.0).reshape(2, 3) + 1)
    with open_dump(tmp_path) as reader:
        before = torch.arange(6.0).reshape(2, 3)
        assert torch.equal(reader.load("model.norm", "saved.mine"), before)
        assert torch.equal(reader.load("model.norm", "saved.turned"), before.t())


def test_what_has_the_bytes_of_a_tensor_of_the_model_is_an_alias(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        saving(model.model.norm, lambda value: session.save("same", value))
        model(IDS)
    with open_dump(tmp_path) as reader:
        rows = [r for r in reader.index(0).to_pylist() if r["module"] == "model.norm"]
        status = {row["slot"]: row["status"] for row in rows}
        assert status["saved.same"] == STORED  # it comes first
        assert status["output"] == ALIASED


def test_last_logits_and_saved_tensors_go_together(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path, "all", dump_last_logits=True)) as session:
        saving(model.model.norm, lambda value: session.save("x", value))
        model.generate(IDS, **PLAIN)
    with open_dump(tmp_path) as reader:
        assert len(saved(reader)) == 3
        assert {r["slot"] for r in reader.index(0).to_pylist()} == {
            *("saved.x", "logits", "scores", "token_ids")
        }


@pytest.mark.parametrize("mode", [1, 2])
def test_statistics_are_made_of_saved_tensors_too(model, tmp_path, mode):
    with register_hook(model, DumpConfig(tmp_path, dump_statistics_mode=mode)) as session:
        saving(
            model.model.norm, lambda value: session.save("ones", torch.ones(4) + 0 * value[0, 0, 0])
        )
        model(IDS)
    with open_dump(tmp_path) as reader:
        (row,) = [r for r in reader.statistics(0).to_pylist() if r["slot"] == "saved.ones"]
        assert (row["count"], row["sum"]) == (4, 4.0)


def test_what_cannot_be_stored_is_counted(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        saving(model.model.norm, lambda _value: session.save("m", torch.empty(3, device="meta")))
        model(IDS)
    with open_dump(tmp_path) as reader:
        (row,) = saved(reader)
        assert row["status"] == "skipped"
        counts = reader.run_info()["counts"]["skipped_by_reason"]
        assert counts["meta tensor, it has no values"] == 1


def test_saving_outside_of_a_run_is_an_error(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        with pytest.raises(CaptureError, match="while the dumped model runs"):
            session.save("x", torch.ones(2))
        model(IDS)
        with pytest.raises(CaptureError, match="while the dumped model runs"):
            session.save("x", torch.ones(2))
    with pytest.raises(CaptureError, match="while the dumped model runs"):
        session.save("x", torch.ones(2))


def test_saving_in_another_thread_is_an_error(model, tmp_path):
    errors = []

    def save():
        try:
            session.save("x", torch.ones(2))
        except CaptureError as error:
            errors.append(error)

    def elsewhere(_value):
        thread = threading.Thread(target=save)
        thread.start()
        thread.join()

    with register_hook(model, DumpConfig(tmp_path)) as session:
        saving(model.model.norm, elsewhere)
        model(IDS)
    assert len(errors) == 1


def test_saving_between_two_forwards_is_an_error(model, tmp_path):
    errors = []

    class Late(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            try:
                session.save("x", torch.ones(2))
            except CaptureError as error:
                errors.append(str(error))
            return torch.zeros(len(input_ids), dtype=torch.bool)

    with register_hook(model, DumpConfig(tmp_path, "all")) as session:
        criteria = [*session.stopping_criteria, Late()]
        model.generate(IDS, **PLAIN, stopping_criteria=criteria)
    assert len(errors) == 3
    assert "between two forwards" in errors[0]


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", 3, None])
def test_a_name_that_is_none_is_an_error(model, tmp_path, name):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        with pytest.raises(CaptureError, match="needs a name"):
            session.save(name, torch.ones(2))
        model(IDS)


@pytest.mark.parametrize("value", [3, [torch.ones(2)], None])
def test_what_is_no_tensor_is_an_error(model, tmp_path, value):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        with pytest.raises(CaptureError, match="takes a tensor"):
            session.save("x", value)
        model(IDS)


def test_a_paused_session_records_nothing(model, tmp_path):
    answers = []
    with register_hook(model, DumpConfig(tmp_path)) as session:
        saving(model.model.norm, lambda value: answers.append(session.save("x", value)))
        with session.pause():
            model(IDS)
        model(IDS)
    assert answers == [False, True]


def test_tokens_and_logits_stay_those_of_the_plain_model(model, tmp_path):
    options = PLAIN | {"return_dict_in_generate": True, "output_logits": True}
    want = model.generate(IDS, **options)
    with register_hook(model, DumpConfig(tmp_path, "all")) as session:
        for module in (model.model.norm, model.model.layers[0].mlp, model.lm_head):
            saving(module, lambda value: session.save("x", value))
        got = model.generate(IDS, **options)
    assert torch.equal(want.sequences, got.sequences)
    assert all(torch.equal(a, b) for a, b in zip(want.logits, got.logits, strict=True))
