"""What a session dumps under each setting, and how several of them get along."""

import pytest
import torch
from torch import nn

from hf_dumper import (
    CaptureError,
    ConfigError,
    DumpConfig,
    DumpFormatError,
    DumpIdentityError,
    DumpWriteError,
    EmptyDumpError,
    SelectionError,
    TokenNeverReachedWarning,
    open_dump,
    register_hook,
)

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


def generate(model, **options):
    return model.generate(
        **{"input_ids": IDS, "attention_mask": MASK, "max_new_tokens": 3} | options
    )


def dumped(model, path, run=generate, **options):
    """Dump one run and return the keys of its records."""
    with register_hook(model, DumpConfig(path, **options)):
        run(model)
    with open_dump(path) as reader:
        return list(reader.keys(run=0))


@pytest.mark.parametrize(
    ("part", "kinds"),
    [(0, {"input"}), (1, {"output"}), (2, {"input", "output"})],
)
def test_a_part_of_each_call_may_be_dumped(model, tmp_path, part, kinds):
    keys = dumped(model, tmp_path, tensor_part=part)
    assert {k.slot.partition(".")[0] for k in keys} - {"token_ids"} == kinds


MLP, PARTS = "model.layers.0.mlp", ("gate", "up", "down")
MLPS_AND_TABLE = ("layers.0.mlp", "layers.1.mlp", "embed_tokens")

SELECTED = [
    ({"layer_name": "lm_head"}, {"lm_head"}),
    ({"layer_name": "root.model.norm"}, {"model.norm"}),
    ({"layer_name": "root"}, {"root"}),
    ({"layer_name": "*.self_attn.q_proj"}, {f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)}),
    ({"layer_name": ["lm_head", "model.norm"]}, {"lm_head", "model.norm"}),
    ({"module_list": ["LlamaMLP"]}, {f"model.layers.{i}.mlp" for i in (0, 1)}),
    ({"module_list": [nn.Embedding]}, {"model.embed_tokens"}),
    ({"module_list": ["LlamaMLP", nn.Embedding]}, {f"model.{n}" for n in MLPS_AND_TABLE}),
    ({"module_list": ["PreTrainedModel"]}, {"root", "model"}),
    ({"module_list": ["Linear"], "layer_name": "*.0.mlp.*"}, {f"{MLP}.{n}_proj" for n in PARTS}),
    ({"module_list": [nn.Linear], "layer_name": "*head*"}, {"lm_head"}),
]


@pytest.mark.parametrize(("options", "modules"), SELECTED)
def test_a_selection_dumps_these_modules(model, tmp_path, options, modules):
    keys = dumped(model, tmp_path, **options)
    assert {k.module for k in keys if k.slot != "token_ids"} == modules


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_name": "lm_haed"}, "'lm_haed'.*'lm_head'"),
        ({"layer_name": ["lm_head", "nowhere"]}, "'nowhere'"),
        ({"layer_name": "layers.0"}, r"'layers\.0'"),
        ({"module_list": ["LlamaMPL"]}, "'LlamaMPL'.*'LlamaMLP'"),
        ({"module_list": [nn.LSTM]}, "'LSTM'"),
        ({"module_list": [nn.Linear], "layer_name": "model.norm"}, "both"),
        ({"device_id": 0}, "device_id=0 selects nothing: the model is on cpu"),
        ({"device_id": 0, "dump_last_logits": True}, "device_id=0 selects nothing"),
        ({"layer_name": "nowhere", "dump_last_logits": True}, "'nowhere'"),
    ],
)
def test_a_selection_of_nothing_is_refused_and_changes_nothing(model, tmp_path, options, message):
    before = set(model.__dict__)
    with pytest.raises(SelectionError, match=message):
        register_hook(model, DumpConfig(tmp_path / "dump", **options))
    assert set(model.__dict__) == before
    assert not (tmp_path / "dump").exists()


@pytest.mark.parametrize(
    ("tokens", "found"),
    [(None, {0}), ([0, 2], {0, 2}), ("1-2", {1, 2}), (range(1, 2), {1}), ("all", {0, 1, 2})],
)
def test_only_the_selected_tokens_are_dumped(model, tmp_path, tokens, found):
    dumped(model, tmp_path, token_range=tokens)
    with open_dump(tmp_path) as reader:
        assert set(reader.index(0)["token"].to_pylist()) == found
        assert set(reader.positions(0)["forward"].to_pylist()) == found


def test_a_token_that_is_never_reached_is_a_warning(model, tmp_path):
    with (
        register_hook(model, DumpConfig(tmp_path, [1, 5, 9])),
        pytest.warns(TokenNeverReachedWarning, match=r"Tokens \[5, 9\].*3 were generated"),
    ):
        generate(model)


def test_all_tokens_missed_is_an_error_of_close(model, tmp_path):
    session = register_hook(model, DumpConfig(tmp_path, [5]))
    with pytest.warns(TokenNeverReachedWarning):
        generate(model)
    with pytest.raises(EmptyDumpError, match="never reached"):
        session.close()


def test_one_run_with_records_is_enough(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path, [2])):
        with pytest.warns(TokenNeverReachedWarning):
            generate(model, max_new_tokens=1)
        generate(model)


@pytest.mark.parametrize(
    ("mode", "values", "numbers"), [(0, True, False), (1, False, True), (2, True, True)]
)
def test_tensors_statistics_or_both_are_dumped(model, tmp_path, mode, values, numbers):
    with register_hook(model, DumpConfig(tmp_path, dump_statistics_mode=mode)):
        want = model(IDS).logits
    with open_dump(tmp_path) as reader:
        rows = [r for r in reader.index(0).to_pylist() if r["slot"] == "output.logits"]
        assert [row["shard"] is not None for row in rows] == [values]
        assert [row["mean"] is not None for row in rows] == [numbers]
        if numbers:
            assert rows[0]["mean"] == pytest.approx(want.double().mean().item(), rel=1e-12)
        if values:
            assert torch.equal(reader.load("root", "output.logits"), want)


def sample(model):
    return generate(model, do_sample=True)


def test_a_seed_makes_runs_equal_and_leaves_the_generators_alone(model, tmp_path):
    state = torch.get_rng_state()
    with register_hook(model, DumpConfig(tmp_path, "all", seed=7)):
        first, second = sample(model), sample(model)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_seed_sampling_goes_on_as_in_the_plain_model(model, tmp_path):
    torch.manual_seed(3)
    want = [sample(model), sample(model)]
    torch.manual_seed(3)
    with register_hook(model, DumpConfig(tmp_path)):
        got = [sample(model), sample(model)]
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("run", [generate, lambda model: model(IDS)])
def test_nothing_is_dumped_while_a_session_pauses(model, tmp_path, run):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        with session.pause(), session.pause():
            run(model)
        assert session.runs == ()
        run(model)
        assert session.runs == (0,)


def test_passed_callbacks_are_silent_while_a_session_pauses(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        with session.pause():
            generate(model, logits_processor=session.logits_processor)
        generate(model)
        assert session.runs == (0,)


def test_a_session_cannot_pause_in_the_middle_of_a_run(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)) as session:

        def hook(*_):
            with pytest.raises(CaptureError, match="middle of a run"), session.pause():
                pass

        handle = model.lm_head.register_forward_hook(hook)
        generate(model)
        handle.remove()


def test_a_second_session_of_the_same_identity_adds_runs(tiny_llama, tmp_path):
    for run in range(3):
        model = tiny_llama()
        with register_hook(model, DumpConfig(tmp_path)) as session:
            generate(model)
            assert session.runs == (run,)
    with open_dump(tmp_path) as reader:
        assert reader.runs() == (0, 1, 2)


@pytest.mark.parametrize("different", [{"seed": 1}, {"num_hidden_layers": 1}, {"dtype": 1}])
def test_another_model_in_the_same_folder_is_refused(tiny_llama, tmp_path, different):
    dumped(tiny_llama(), tmp_path)
    other = tiny_llama().bfloat16() if "dtype" in different else tiny_llama(**different)
    before = set(other.__dict__)
    with pytest.raises(DumpIdentityError, match="dump of something else"):
        register_hook(other, DumpConfig(tmp_path))
    assert set(other.__dict__) == before
    with open_dump(tmp_path) as reader:
        assert reader.runs() == (0,)


def test_overwriting_replaces_a_dump_of_something_else(tiny_llama, tmp_path):
    dumped(tiny_llama(), tmp_path)
    other = tiny_llama(1)
    with register_hook(other, DumpConfig(tmp_path, overwrite=True)) as session:
        generate(other)
        assert session.runs == (0,)
    with open_dump(tmp_path) as reader:
        assert reader.runs() == (0,)


def test_a_folder_that_is_no_dump_is_left_alone(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DumpFormatError, match="is no dump"):
        register_hook(model, DumpConfig(tmp_path, overwrite=True))
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_weights_that_change_between_runs_are_another_model(model, tmp_path, overwrite):
    with register_hook(model, DumpConfig(tmp_path, overwrite=overwrite)) as session:
        generate(model)
        with torch.no_grad():
            model.lm_head.weight.add_(1)
        for _ in range(2):
            with pytest.raises(DumpIdentityError):
                model(IDS)
        assert session.runs == (0,)
    with open_dump(tmp_path) as reader:
        assert reader.runs() == (0,)
        assert reader.run_info(0)["complete"]


def test_weights_that_change_before_the_first_run_are_the_model(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)):
        with torch.no_grad():
            model.lm_head.weight.add_(1)
        want = model(IDS).logits
    with open_dump(tmp_path) as reader:
        assert torch.equal(reader.load("root", "output.logits"), want)


def test_callbacks_outside_of_generate_are_an_error(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        with pytest.raises(CaptureError, match="generate"):
            type(model).generate(
                model, IDS, max_new_tokens=2, logits_processor=session.logits_processor
            )
        generate(model)


def test_callbacks_of_a_closed_session_are_silent(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        generate(model)
    generate(model, logits_processor=session.logits_processor)
    assert session.runs == (0,)


def test_another_kind_of_hook_is_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="dump_data"):
        register_hook(model, DumpConfig(tmp_path), "dump_everything")


def test_the_summary_tells_path_runs_and_records(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        generate(model)
    summary = session.summary()
    with open_dump(tmp_path) as reader:
        assert summary["records"] == len(list(reader.keys(run=0)))
    assert (summary["path"], summary["runs"], summary["closed"]) == (str(tmp_path), (0,), True)


@pytest.mark.parametrize("args", [(IDS,), (None,), ()])
def test_the_prompt_is_kept_however_it_was_passed(model, tmp_path, args):
    options = {} if any(a is IDS for a in args) else {"input_ids": IDS}
    with register_hook(model, DumpConfig(tmp_path)):
        model.generate(*args, max_new_tokens=1, **options)
    with open_dump(tmp_path) as reader:
        assert reader.run_info(0)["prompt"]["input_ids"] == IDS.tolist()


def test_capture_and_writer_count_the_same(tiny_llama, tmp_path):
    with register_hook(tiny_llama(), DumpConfig(tmp_path / "dump", "all")) as session:
        session._model.generate(torch.arange(1, 6)[None], max_new_tokens=3, do_sample=False)
    with open_dump(tmp_path / "dump") as dump:
        info = dump.run_info()
    assert info["records"]["aliased"] > 0
    assert {status: info["counts"][status] for status in info["records"]} == info["records"]


# --- numbers of runs ------------------------------------------------------------------------------


def test_a_number_and_its_source_are_those_of_the_next_run_only(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        session.number_next(7, {"rows": [7, 8]})
        generate(model)
        generate(model)
        assert session.runs == (7, 8)
    with open_dump(tmp_path) as reader:
        assert reader.runs() == (7, 8)
        sources = [reader.run_info(run)["prompt"].get("source") for run in (7, 8)]
    assert sources == [{"rows": [7, 8]}, None]


def test_a_number_that_exists_is_an_error_and_spares_the_run(model, tmp_path):
    config = DumpConfig(tmp_path, on_error="raise")
    with register_hook(model, config) as session:
        generate(model)
        session.number_next(0)
        with pytest.raises(DumpWriteError, match="Run 0 exists"):
            generate(model)
        generate(model)
        assert session.runs == (0, 1)
    with open_dump(tmp_path) as reader:
        assert all(reader.run_info(run)["complete"] for run in (0, 1))


@pytest.mark.parametrize("number", [-1, True, 1.0, "1"])
def test_what_is_no_number_is_refused(model, tmp_path, number):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        with pytest.raises(CaptureError, match="int from 0"):
            session.number_next(number)
        generate(model)


def test_a_run_in_progress_has_its_number(model, tmp_path):
    refused = []

    def number(*_):
        with pytest.raises(CaptureError, match="in progress"):
            session.number_next(3)
        refused.append(True)

    with register_hook(model, DumpConfig(tmp_path)) as session:
        with model.lm_head.register_forward_hook(number):
            generate(model, max_new_tokens=1)
        assert session.runs == (0,)
    assert refused
