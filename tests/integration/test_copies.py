"""Copies of a dumped model are plain models, and do not write into its dump."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LogitsProcessor

from hf_dumper import DumpConfig, open_dump, register_hook

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.usefixtures("kind_of_hooks")


def through_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_file,
}


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


@pytest.fixture
def session(model, tmp_path):
    made = register_hook(model, DumpConfig(tmp_path / "dump"))
    with torch.no_grad():
        model(IDS)
    yield made
    made.close()


def generate(model):
    return model.generate(IDS, max_new_tokens=2)


def hooks(model):
    return [
        name
        for module in model.modules()
        for name, value in module.__dict__.items()
        if "hooks" in name and value
    ]


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_a_plain_model(tiny_llama, model, session, how):
    twin = COPIES[how](model)
    assert type(twin) is type(model)
    assert hooks(twin) == []
    assert set(twin.__dict__) == set(tiny_llama().__dict__)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_gives_the_same_and_does_not_write(model, session, how):
    twin = COPIES[how](model)
    got = generate(twin)
    assert session.runs == (0,)
    assert torch.equal(got, generate(model))
    assert session.runs == (0, 1)


class Copier(LogitsProcessor):
    """Copies the model after each forward."""

    def __init__(self, model):
        self.model, self.twins = model, []

    def __call__(self, input_ids, scores):
        self.twins.append(copy.deepcopy(self.model))
        return scores


def test_a_copy_made_between_the_tokens_of_a_generation_is_plain(model, session):
    copier = Copier(model)
    want = model.generate(IDS, max_new_tokens=2, logits_processor=[copier])
    assert hooks(copier.twins[0]) == []
    assert torch.equal(generate(copier.twins[0]), want)
    assert session.runs == (0, 1)
    with open_dump(session.path) as reader:
        assert reader.run_info(1)["complete"]
        assert {key.forward for key in reader.keys(run=1)} == {0}


def test_a_copy_made_inside_a_forward_does_not_disturb_it(model, session):
    want = generate(model)
    handle = model.lm_head.register_forward_hook(lambda *_: copy.deepcopy(model) and None)
    assert torch.equal(generate(model), want)
    handle.remove()
    with open_dump(session.path) as reader:
        assert reader.run_info(2)["complete"]


def test_a_copy_does_not_change_the_order_of_hooks(model, session):
    def shift(_module, args):
        return (args[0] + 1, *args[1:])

    handle = model.lm_head.register_forward_pre_hook(shift)
    with torch.no_grad():
        model(IDS)
        copy.deepcopy(model)
        model(IDS)
    handle.remove()
    with open_dump(session.path) as reader:
        before, after = (reader.load("lm_head", "input.0", run=run) for run in (1, 2))
    assert torch.equal(before, after)


@pytest.mark.parametrize("how", COPIES)
def test_a_copied_submodule_records_nothing(model, session, how):
    twin = COPIES[how](model.model)
    with torch.no_grad():
        got = twin(IDS).last_hidden_state
        assert torch.equal(got, model.model(IDS).last_hidden_state)
    assert session.runs == (0,)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_parent_with_a_dumped_model_is_copied_with_a_plain_one(model, session, how):
    twin = COPIES[how](nn.Sequential(model))
    assert hooks(twin) == []
    assert "dump" not in twin[0].__dict__
    generate(twin[0])
    assert session.runs == (0,)


def test_a_parent_with_a_dumped_model_dumps_runs_of_it(model, session):
    with torch.no_grad():
        nn.Sequential(model)(IDS)
    assert session.runs == (0, 1)


def test_the_parameters_and_the_state_are_named_as_before(tiny_llama, model, session):
    assert list(model.state_dict()) == list(tiny_llama().state_dict())


def test_saving_keeps_config_and_class(model, session, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert again.config.architectures == ["LlamaForCausalLM"]
    assert type(again) is type(model)
    assert hooks(again) == []
    assert torch.equal(generate(again), generate(model))


def test_a_saved_folder_is_byte_for_byte_that_of_the_plain_model(
    tiny_llama, model, session, tmp_path
):
    model.save_pretrained(tmp_path / "dumped")
    tiny_llama().save_pretrained(tmp_path / "plain")
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {path.name for path in (tmp_path / "dumped").iterdir()} == names
    for name in names:
        assert (tmp_path / "dumped" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


CHANGES = {
    "to": lambda model: model.to(torch.bfloat16),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "float": lambda model: model.float(),
    "train": lambda model: model.train(),
    "eval": lambda model: model.eval(),
    "cpu": lambda model: model.cpu(),
    "no gradients": lambda model: model.requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_arming_returns_the_model_and_is_what_is_dumped(model, tmp_path, change):
    with register_hook(model, DumpConfig(tmp_path)):
        assert CHANGES[change](model) is model
        with torch.no_grad():
            want = model(IDS).logits
    with open_dump(tmp_path) as reader:
        assert torch.equal(reader.load("root", "output.logits"), want)
        assert reader.manifest["identity"]["dtype"] == str(model.dtype)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_sessions_dump_the_same_and_end_in_any_order(model, tmp_path, order):
    attributes = set(model.__dict__)
    want = generate(model)
    sessions = [register_hook(model, DumpConfig(tmp_path / str(i), "all")) for i in range(2)]
    assert torch.equal(generate(model), want)
    sessions[order[0]].close()
    assert torch.equal(generate(model), want)
    sessions[order[1]].close()
    assert torch.equal(generate(model), want)
    assert hooks(model) == []
    assert set(model.__dict__) - attributes == {"dump"}
    assert [s.runs for s in (sessions[order[0]], sessions[order[1]])] == [(0,), (0, 1)]
    with open_dump(tmp_path / "0") as one, open_dump(tmp_path / "1") as two:
        hashes = [reader.index(0)["hash"].to_pylist() for reader in (one, two)]
    assert hashes[0] == hashes[1]


def test_two_sessions_may_select_different_things(model, tmp_path):
    with (
        register_hook(model, DumpConfig(tmp_path / "a", [0], layer_name="lm_head")),
        register_hook(model, DumpConfig(tmp_path / "b", [1], tensor_part=1)),
    ):
        generate(model)
    with open_dump(tmp_path / "a") as one, open_dump(tmp_path / "b") as two:
        found = [{key.forward for key in reader.keys(run=0)} for reader in (one, two)]
    assert found == [{0}, {1}]


def test_the_session_itself_cannot_be_copied(session):
    with pytest.raises(RuntimeError, match="cannot be copied"):
        copy.deepcopy(session)
