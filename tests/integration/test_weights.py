"""dump_weight: the weights of a model beside what it did with them, in both layouts."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from hf_dumper import (
    DumpConfig,
    DumpIdentityError,
    DumpWarning,
    KeyNotFoundError,
    open_dump,
    register_hook,
)

IDS = torch.tensor([[5, 6, 7]])
LAYOUTS = pytest.mark.parametrize("layout", ["native", "msit"])


def dump(model, path, **config):
    with register_hook(model, DumpConfig(path, dump_weight=True, **config)):
        model(IDS)
    return open_dump(path)


def state(model):
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def same(weights, want):
    return set(weights) == want.keys() and all(torch.equal(weights[n], want[n]) for n in want)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_and_buffer_comes_back(tiny_llama, tmp_path, layout, dtype):
    model = tiny_llama().to(dtype)
    with dump(model, tmp_path / "d", layout=layout) as reader:
        assert same(reader.weights(), state(model))


@LAYOUTS
def test_tied_weights_are_found_under_both_names(tiny_llama, tmp_path, layout):
    model = tiny_llama(tie_word_embeddings=True)
    with dump(model, tmp_path / "d", layout=layout) as reader:
        weights = reader.weights()
        assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
        assert same(weights, state(model))


@LAYOUTS
def test_weights_of_another_place_have_their_values(tiny_llama, tmp_path, layout):
    for name, offload in (
        ("cpu", lambda model: cpu_offload(model, execution_device="cpu")),
        ("disk", lambda model: disk_offload(model, tmp_path / "off", execution_device="cpu")),
    ):
        model = tiny_llama()
        want = state(model)
        offload(model)
        with dump(model, tmp_path / name, layout=layout) as reader:
            assert same(reader.weights(), want)


@LAYOUTS
def test_a_selection_holds_for_weights_too(tiny_llama, tmp_path, layout):
    options = {"layout": layout, "layer_name": "root.model.layers.1.mlp"}
    with dump(tiny_llama(), tmp_path / "d", **options) as reader:
        assert set(reader.weights()) == {
            f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")
        }


@LAYOUTS
def test_a_weight_that_cannot_be_dumped_is_a_warning(tiny_llama, tmp_path, layout):
    model = tiny_llama()
    model.register_buffer("wide", torch.zeros(2, dtype=torch.complex128))
    config = DumpConfig(tmp_path / "d", dump_weight=True, layout=layout)
    with pytest.warns(DumpWarning, match="'wide' is not dumped: dtype complex128"):
        session = register_hook(model, config)
    model(IDS)
    session.close()
    with open_dump(tmp_path / "d") as reader:
        assert "wide" in reader.weights().skipped


def test_a_dump_has_no_weights_unless_asked(tiny_llama, tmp_path):
    for layout in ("native", "msit"):
        model = tiny_llama()
        with register_hook(model, DumpConfig(tmp_path / layout, layout=layout)):
            model(IDS)
        with (
            open_dump(tmp_path / layout) as reader,
            pytest.raises(KeyNotFoundError, match="dump_weight=True"),
        ):
            reader.weights()


def test_weights_are_written_once_for_several_runs(tiny_llama, tmp_path):
    model = tiny_llama()
    with register_hook(model, DumpConfig(tmp_path / "d", dump_weight=True, layout="msit")):
        for _ in range(2):
            model(IDS)
    assert len(list((tmp_path / "d").rglob("weights"))) == 1
    with open_dump(tmp_path / "d") as reader:
        assert same(reader.weights(), state(model))


def test_a_second_session_with_other_weights_is_refused_even_without_hashes(tiny_llama, tmp_path):
    dump(tiny_llama(), tmp_path / "d", hash_weights=False)
    dump(tiny_llama(), tmp_path / "d", hash_weights=False)
    config = DumpConfig(tmp_path / "d", dump_weight=True, hash_weights=False)
    with pytest.raises(DumpIdentityError, match="differs"):
        register_hook(tiny_llama(1), config)


def test_weights_changed_before_the_first_run_are_those_dumped(tiny_llama, tmp_path):
    model = tiny_llama()
    with register_hook(model, DumpConfig(tmp_path / "d", dump_weight=True)):
        with torch.no_grad():
            model.model.norm.weight.add_(1)
        model(IDS)
    with open_dump(tmp_path / "d") as reader:
        assert same(reader.weights(), state(model))


def test_overwriting_replaces_the_weights(tiny_llama, tmp_path):
    dump(tiny_llama(), tmp_path / "d")
    model = tiny_llama(1)
    with dump(model, tmp_path / "d", overwrite=True) as reader:
        assert same(reader.weights(), state(model))
