"""Compiled models that are run without their compilation, because somebody said so."""

import copy

import pytest
import torch
from torch._dynamo import eval_frame

from hf_dumper import CompiledModelError, DumpConfig, compare, open_dump, register_hook

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))
CALL = {"attention_mask": torch.ones_like(IDS), "do_sample": False, "max_new_tokens": 3}


def in_place(model):
    model.compile(backend="eager")
    return model


def layer_in_place(model):
    model.model.layers[1].compile(backend="eager")
    return model


def wrapped(model):
    return torch.compile(model, backend="eager")


def wrapped_layer(model):
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    return model


def forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


WAYS = {f.__name__: f for f in (in_place, layer_in_place, wrapped, wrapped_layer, forward)}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def stance():
    return eval_frame._stance.stance


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("warm", [False, True])
def test_a_compiled_model_is_dumped_as_the_eager_one(tiny_llama, tmp_path, way, warm):
    plain = tiny_llama()
    compiled = WAYS[way](copy.deepcopy(plain))
    if warm:  # what torch compiled is there before the hooks are
        with torch.no_grad():
            compiled(IDS)
    with register_hook(plain, DumpConfig(tmp_path / "plain", "all")):
        want = plain.generate(IDS, **CALL), plain(IDS).logits
    with register_hook(compiled, DumpConfig(tmp_path / "eager", "all", allow_eager=True)):
        assert stance() == "force_eager"
        got = compiled.generate(IDS, **CALL), compiled(IDS).logits
    assert stance() == "default"
    assert all(map(torch.equal, want, got))
    hashes = []
    for name in ("plain", "eager"):
        with open_dump(tmp_path / name) as dump:
            assert dump.runs() == (0, 1)
            rows = [row for run in dump.runs() for row in dump.index(run).to_pylist()]
        key = ("forward", "token", "phase", "slot", "call")
        hashes.append({(row["module"], *(row[k] for k in key)): row["hash"] for row in rows})
    assert hashes[0] == hashes[1]
    assert compare(tmp_path / "plain", tmp_path / "eager").verdict == "identical"


def test_names_stay_where_a_model_was_compiled_in_place(tiny_llama, tmp_path):
    plain = tiny_llama()
    compiled = in_place(layer_in_place(copy.deepcopy(plain)))
    for name, model in (("plain", plain), ("eager", compiled)):
        with register_hook(model, DumpConfig(tmp_path / name, "all", allow_eager=name == "eager")):
            model.generate(IDS, **CALL)
    assert compare(tmp_path / "plain", tmp_path / "eager").verdict == "identical"
    with open_dump(tmp_path / "eager") as dump:
        assert dump.run_info()["run_without_compilation"] == ["root", "model.layers.1"]


def test_the_model_is_compiled_again_when_the_session_is_closed(tiny_llama, tmp_path):
    ran = []

    def backend(graph, _inputs):
        def run(*args):
            ran.append(1)
            return graph(*args)

        return run

    model = tiny_llama()
    model.compile(backend=backend)
    before = set(model.__dict__)
    with torch.no_grad():
        with register_hook(model, DumpConfig(tmp_path, allow_eager=True)):
            model(IDS)
        assert ran == []
        model(IDS)
    assert ran
    assert set(model.__dict__) - before == {"dump"}


def test_the_stance_stays_until_the_last_session_is_closed(tiny_llama, tmp_path):
    model = in_place(tiny_llama())
    first = register_hook(model, DumpConfig(tmp_path / "1", allow_eager=True))
    second = register_hook(model, DumpConfig(tmp_path / "2", allow_eager=True))
    model(IDS)
    first.close()
    assert stance() == "force_eager"
    model(IDS)
    second.close()
    assert stance() == "default"
    assert (len(first.runs), len(second.runs)) == (1, 2)


def test_the_stance_comes_back_after_an_error_of_the_model(tiny_llama, tmp_path):
    model = in_place(tiny_llama())
    session = register_hook(model, DumpConfig(tmp_path, allow_eager=True))
    with pytest.raises(IndexError), session:
        model(IDS + 1000)
    assert stance() == "default"


def test_a_compiled_model_is_refused_with_the_way_out(tiny_llama, tmp_path):
    with pytest.raises(CompiledModelError, match="allow_eager=True"):
        register_hook(in_place(tiny_llama()), DumpConfig(tmp_path))
    assert stance() == "default"


def test_that_generate_does_not_compile_is_noted(tiny_llama, tmp_path):
    model = tiny_llama()
    with register_hook(model, DumpConfig(tmp_path)):
        model.generate(IDS, **CALL)
        model.generate(IDS, **CALL, disable_compile=True)
    with open_dump(tmp_path) as dump:
        noted = [dump.run_info(run)["auto_compile"] for run in dump.runs()]
    assert noted == ["disabled by hf_dumper", "disabled by the caller"]
