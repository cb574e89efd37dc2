"""LoRA adapters of peft: unmerged, merged and unloaded, and what a comparison makes of them."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from hf_dumper import DumpConfig, DumpingModel, compare, open_dump, register_hook
from hf_dumper.diagnose.rerun import rerun
from hf_dumper.errors import DumpIdentityError

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
IDS = torch.tensor([[5, 6, 7, 8, 9]])
Q = "model.layers.0.self_attn.q_proj"
NAMES = sorted(f"model.layers.{i}.self_attn.{name}_proj" for i in (0, 1) for name in "qv")


@pytest.fixture
def lora(tiny_llama):
    def make(task_type="CAUSAL_LM", **adapters):
        terms = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
        config = LoraConfig(**terms, task_type=task_type)
        model = get_peft_model(tiny_llama(), config)
        for name in adapters:
            model.add_adapter(name, config)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model.eval()

    return make


def generated(model):
    terms = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    return torch.stack(model.generate(input_ids=IDS, output_logits=True, **terms).logits)


def dumped(model, path):
    with register_hook(model, DumpConfig(path, "all", dump_weight=True)):
        generated(model)
    return path


def names(path):
    return {key.module for key in open_dump(path).keys()}  # noqa: SIM118 (a reader is no mapping)


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
def test_a_peft_model_is_dumped_as_the_model_inside(lora, tmp_path, task_type):
    model = lora(task_type)
    assert isinstance(model, PeftModel)
    plain = generated(model)
    with register_hook(model, DumpConfig(tmp_path / "outer", "all")) as session:
        assert torch.equal(generated(model), plain)
        assert model.dump is session
    with register_hook(model.get_base_model(), DumpConfig(tmp_path / "inner", "all")):
        assert torch.equal(generated(model), plain)
    outer, inner = open_dump(tmp_path / "outer"), open_dump(tmp_path / "inner")
    assert outer.trace(0).num_rows == 3
    assert outer.manifest["identity"] == inner.manifest["identity"]
    assert outer.manifest["identity"]["class"] == "LlamaForCausalLM"
    assert compare(outer, inner).verdict == "identical"
    for token in range(3):
        logits = outer.load("root", "output.logits", token)
        assert torch.equal(logits[:, -1], plain[token])


def test_a_bare_forward_is_dumped_too(lora, tmp_path):
    model = lora()
    with register_hook(model, DumpConfig(tmp_path / "dump")), torch.no_grad():
        logits = model(input_ids=IDS).logits
    assert torch.equal(open_dump(tmp_path / "dump").load("root", "output.logits"), logits)


def test_nothing_remains(lora, tmp_path):
    model = lora()
    generated(model)  # which peft leaves a trace of, too
    before = [set(vars(m)) for m in model.modules()]
    dumped(model, tmp_path / "dump")
    more = [set(vars(m)) - old for m, old in zip(model.modules(), before, strict=True)]
    assert set().union(*more) <= {"dump"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_copy_is_plain(lora, tmp_path):
    model = lora()
    with register_hook(model, DumpConfig(tmp_path / "dump", "all")) as session:
        twin = copy.deepcopy(model)
        assert torch.equal(generated(twin), generated(model))
        assert len(session.runs) == 1


def test_matrices_of_adapters_are_recorded(lora, tmp_path):
    model = lora()
    dumped(model, tmp_path / "dump")
    dump = open_dump(tmp_path / "dump")
    low = dump.load(f"{Q}.lora_A.default", "output")
    assert low.shape == (1, 5, 4)
    high = dump.load(f"{Q}.lora_B.default", "output")
    base = dump.load(f"{Q}.base_layer", "output")
    assert torch.equal(base + high * 2.0, dump.load(Q, "output"))  # lora_alpha / r
    assert f"{Q}.lora_A.default.weight" in dump.weights()


def test_the_manifest_tells_active_and_merged_adapters(lora, tmp_path):
    model = lora(other=True)
    dumped(model, tmp_path / "a")
    model.set_adapter("other")
    dumped(model, tmp_path / "b")
    model.merge_adapter()
    dumped(model, tmp_path / "c")
    model.unmerge_adapter()
    with model.disable_adapter():
        dumped(model, tmp_path / "d")
    facts = [open_dump(tmp_path / n).manifest["identity"]["adapters"] for n in "abcd"]
    assert [f["active"] for f in facts] == [["default"], ["other"], ["other"], []]
    assert [f["merged"] for f in facts] == [[], [], ["other"], []]
    assert all(f["modules"] == NAMES for f in facts)


def test_another_adapter_is_another_dump(lora, tmp_path):
    model = lora(other=True)
    with register_hook(model, DumpConfig(tmp_path / "dump", "all")):
        generated(model)
        model.set_adapter("other")
        with pytest.raises(DumpIdentityError):
            generated(model)


def ways(lora, folder):
    """Dump the same adapters unmerged, merged, and merged and unloaded."""
    dumped(lora(), folder / "unmerged")
    merged = lora()
    merged.merge_adapter()
    dumped(merged, folder / "merged")
    dumped(lora().merge_and_unload(), folder / "unloaded")


def test_merged_and_unmerged_agree_within_the_limits(lora, tmp_path):
    ways(lora, tmp_path)
    common = names(tmp_path / "unloaded")
    for golden, candidate in (
        ("unmerged", "merged"),
        ("merged", "unmerged"),
        ("unmerged", "unloaded"),
        ("unloaded", "unmerged"),
        ("merged", "unloaded"),
    ):
        found = compare(tmp_path / golden, tmp_path / candidate)
        assert found.passed, (golden, candidate, found.verdict, found.divergence)
        assert set(found.results.column("module").to_pylist()) == common
        assert "adapters" in {f.subject for f in found.regime}
        reasons = set(found.unmatched.column("reason").to_pylist())
        assert all("inside a module with adapters" in reason for reason in reasons)


def test_a_wrong_merge_is_found_where_it_is(lora, tmp_path):
    dumped(lora(), tmp_path / "golden")
    model = lora()
    model.base_model.model.model.layers[1].self_attn.v_proj.scaling["default"] = 1.0
    dumped(model.merge_and_unload(), tmp_path / "candidate")
    found = compare(tmp_path / "golden", tmp_path / "candidate")
    assert found.verdict == "fail"
    assert found.divergence.module == "model.layers.1.self_attn.v_proj"


def test_a_model_that_lost_its_adapters_is_found(lora, tiny_llama, tmp_path):
    dumped(lora(), tmp_path / "golden")
    dumped(tiny_llama(), tmp_path / "candidate")
    found = compare(tmp_path / "golden", tmp_path / "candidate")
    assert found.verdict == "fail"
    assert found.divergence.module == Q


def test_other_weights_outside_of_adapters_are_told(lora, tmp_path):
    dumped(lora(), tmp_path / "golden")
    model = lora().merge_and_unload()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    dumped(model, tmp_path / "candidate")
    found = compare(tmp_path / "golden", tmp_path / "candidate")
    assert [f.subject for f in found.inputs] == ["weight model.layers.0.mlp.up_proj.weight"]


def test_the_folder_of_an_adapter_loads_with_its_base(lora, tiny_llama, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(tmp_path / "base"),
        LoraConfig(**config, init_lora_weights=False, task_type="CAUSAL_LM"),
    ).eval()
    model.save_pretrained(tmp_path / "adapter")
    config = DumpConfig(tmp_path / "dump", "all")
    loaded = DumpingModel.from_pretrained(tmp_path / "adapter", dump_config=config)
    assert torch.equal(generated(loaded), generated(model))
    loaded.dump.close()
    adapters = open_dump(tmp_path / "dump").manifest["identity"]["adapters"]
    assert (adapters["active"], adapters["modules"]) == (["default"], NAMES)


def test_run_again_it_gives_the_same_bits(lora, tmp_path):
    dumped(lora(), tmp_path / "dump")
    assert rerun(tmp_path / "dump", lora()).verdict == "equal"
