"""`hf-dumper summary`: totals are those of a built model, and shapes those of a real forward."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

import hf_dumper
from hf_dumper import DEMO_MODEL
from hf_dumper.capture.outline import outline
from hf_dumper.cli.failures import DONE, IMPOSSIBLE

ROOT = Path(hf_dumper.__file__).parents[1]

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PLAIN = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
PAIR = {
    "vocab_size": 64,
    "d_model": 32,
    **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")},
}
IMAGE = {**PLAIN, "image_size": 32, "patch_size": 8}
SPOKEN = {"max_source_positions": 50, "max_target_positions": 20, "num_mel_bins": 8}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}

MODELS = {
    "LlamaForCausalLM": ("LlamaConfig", TEXT),
    "Qwen2ForCausalLM": ("Qwen2Config", {**TEXT, "tie_word_embeddings": True}),
    "MixtralForCausalLM": ("MixtralConfig", {**TEXT, "num_local_experts": 4}),
    "BertModel": ("BertConfig", PLAIN),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 64, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4},
    ),
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "Gemma2ForCausalLM": ("Gemma2Config", {**TEXT, "head_dim": 8}),
    "ViTForImageClassification": ("ViTConfig", {**IMAGE, "vocab_size": None}),
    "WhisperForConditionalGeneration": ("WhisperConfig", {**PAIR, **SPOKEN, **IDS}),
    "BartForConditionalGeneration": ("BartConfig", PAIR),
    "MambaForCausalLM": (
        "MambaConfig",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    ),
    "CLIPModel": ("CLIPConfig", {"text_config": PLAIN, "vision_config": IMAGE}),
    "BertForSequenceClassification": ("BertConfig", {**PLAIN, "num_labels": 3}),
    "BlipForConditionalGeneration": (
        "BlipConfig",
        {"text_config": {**PLAIN, "encoder_hidden_size": 32}, "vision_config": IMAGE},
    ),
}
SEEING = {
    "LlavaForConditionalGeneration": ("LlavaConfig", {"image_token_index": 63}),
    "InternVLForConditionalGeneration": (
        "InternVLConfig",
        {"image_token_id": 63, "downsample_ratio": 0.5},
    ),
}


def config_of(name):
    if name in SEEING:
        cls, values = SEEING[name]
        parts = {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": {**IMAGE}}
        if name.startswith("Llava"):
            parts["vision_config"]["model_type"] = "clip_vision_model"
        else:
            parts["vision_config"] |= {"image_size": [32, 32], "patch_size": [8, 8]}
        return getattr(transformers, cls)(**parts, **values)
    cls, values = MODELS[name]
    return getattr(transformers, cls)(**values)


def build(name, device):
    with torch.device(device):
        return getattr(transformers, name)(config_of(name)).eval()


def sums(model):
    parameters, buffers = list(model.parameters()), list(model.buffers())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "buffers": sum(b.numel() for b in buffers),
        "bytes": sum(t.nbytes for t in (*parameters, *buffers)),
    }


@pytest.fixture(scope="module", params=MODELS)
def built(request):
    """Return the outline of a model on the meta device, and the model with weights."""
    return outline(build(request.param, "meta"), rows=2, tokens=7), build(request.param, "cpu")


def test_totals_are_those_of_a_built_model(built):
    found, real = built
    facts = found.to_dict()
    wanted = sums(real)
    assert {name: facts[name] for name in wanted} == wanted
    assert sum(total.bytes for total in found.dtypes.values()) == wanted["bytes"]
    assert sum(total.parameters for total in found.dtypes.values()) == wanted["parameters"]


def test_every_module_of_a_built_model_is_listed(built):
    found, real = built
    names = [(name or "root", type(module).__name__) for name, module in real.named_modules()]
    assert [(module.name, module.class_name) for module in found.modules] == names


def test_own_parts_add_up_to_the_whole(built):
    found, _ = built
    for module in found.modules:
        inside = "" if module.name == "root" else f"{module.name}."
        below = [m for m in found.modules[1:] if m.depth == module.depth + 1]
        below = [m for m in below if m.name.startswith(inside)]
        assert sum(m.parameters for m in below) <= module.parameters
        assert module.trainable <= module.parameters


def test_shapes_are_those_of_a_real_forward(built):
    found, real = built
    seen = {}

    def see(name):
        def hook(module, args, output):
            seen.setdefault(name, output)

        return hook

    for name, module in real.named_modules():
        module.register_forward_hook(see(name or "root"))
    whole = [n for n in ("input_ids", "decoder_input_ids") if n in found.inputs]
    inputs = {n: torch.zeros(s) for n, s in found.inputs.items()}
    inputs |= {n: inputs[n].long() for n in whole}
    with torch.no_grad():
        real(**inputs)
    called = {module.name for module in found.modules if module.outputs is not None}
    assert called == seen.keys()
    compared = 0
    for module in found.modules:
        output = seen.get(module.name)
        if isinstance(output, torch.Tensor):
            assert module.outputs == (("output", tuple(output.shape)),)
            compared += 1
    assert compared > 5


@pytest.mark.parametrize("name", SEEING)
def test_the_tower_of_a_model_that_reads_and_sees_has_its_shapes(name):
    found = outline(build(name, "meta"), rows=2, tokens=7)
    real, seen = build(name, "cpu"), {}
    for path, module in real.named_modules():
        module.register_forward_hook(lambda _m, _a, out, path=path: seen.setdefault(path, out))
    with torch.no_grad():
        real(input_ids=torch.zeros(found.inputs["input_ids"], dtype=torch.int64))
        text = len(seen)
        real.get_image_features(pixel_values=torch.zeros(found.inputs["pixel_values"]))
    assert len(seen) > 2 * text
    assert not found.unknown
    shapes = {m.name: m.outputs for m in found.modules}
    plain = {n: out for n, out in seen.items() if n and isinstance(out, torch.Tensor)}
    assert {n: shapes[n] for n in plain} == {
        n: (("output", tuple(out.shape)),) for n, out in plain.items()
    }
    assert "what the forward did not call was learnt by get_image_features" in found.notes


def test_a_tower_that_needs_values_is_unknown_with_the_reason():
    class Seeing(transformers.LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            self.tower = nn.Linear(4, 4)

        def get_image_features(self, pixel_values):
            return self.tower(pixel_values) if pixel_values.sum().item() else None

    with torch.device("meta"):
        model = Seeing(config_of("LlamaForCausalLM"))
    ((why, count),) = outline(model, rows=1, tokens=2).unknown.items()
    assert why.startswith("not called in this forward; by get_image_features the forward stops in")
    assert count == 1


def test_modules_without_a_shape_say_why_and_are_counted(built):
    found, _ = built
    silent = [m for m in found.modules if m.outputs is None]
    reasons = [m for m in silent if m.why]
    assert sum(found.unknown.values()) == len(reasons)
    assert all(m.class_name in ("ModuleList", "ModuleDict") for m in silent if not m.why)


def test_a_tied_weight_is_counted_once_and_named():
    found = outline(build("Qwen2ForCausalLM", "meta"), rows=1, tokens=2)
    (head,) = (m for m in found.modules if m.name == "lm_head")
    assert (head.parameters, head.tied) == (0, ("weight = model.embed_tokens.weight",))


def test_frozen_parameters_are_not_trainable():
    model = build("LlamaForCausalLM", "meta")
    model.lm_head.requires_grad_(False)
    root = outline(model, rows=1, tokens=2).modules[0]
    assert root.parameters - root.trainable == 64 * 32


class Picky(transformers.LlamaForCausalLM):
    """Looks at a value halfway, which tensors on the meta device do not have."""

    def __init__(self, config):
        super().__init__(config)
        self.late = nn.Linear(2, 2)

    def forward(self, input_ids=None, **options):
        hidden = self.model(input_ids=input_ids).last_hidden_state
        return self.late(hidden[..., :2]) if hidden.sum().item() else hidden


def test_a_forward_that_depends_on_values_leaves_shapes_unknown_with_the_reason():
    with torch.device("meta"):
        model = Picky(config_of("LlamaForCausalLM"))
    found = outline(model, rows=1, tokens=2)
    ((why, count),) = found.unknown.items()
    assert why.startswith("the forward stops in root: RuntimeError: Tensor.item() cannot")
    assert count == 3  # the model itself, its head and the late layer
    assert found.modules[1].outputs == (("output.last_hidden_state", (1, 2, 32)),)


def test_inputs_of_an_unknown_kind_leave_every_shape_unknown():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 3))
    found = outline(model, rows=1, tokens=2)
    assert found.unknown == {"What the model takes as 'input_ids' is not known": 2}
    assert found.modules[0].parameters == 9


# --- the command ----------------------------------------------------------------------------------


def save_config(name, folder):
    config = config_of(name)
    config.architectures = [name]
    config.save_pretrained(folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_folder_with_a_configuration_alone_is_enough(place, cli):
    save_config("LlamaForCausalLM", place / "bare")
    status, out, err = cli("summary", "bare", "--tokens", 5, "--batch", 3)
    assert (status, err) == (DONE, "")
    assert "LlamaForCausalLM" in out
    assert "3x5x64" in out
    assert "inputs      input_ids 3x5" in out
    assert f"parameters  {sums(build('LlamaForCausalLM', 'meta'))['parameters']:,}" in out


def test_the_demo_model_has_the_totals_of_its_weights(place, cli):
    status, out, _ = cli("summary", "demo", "--json")
    facts = json.loads(out)
    real = sums(transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL))
    assert status == DONE
    assert {name: facts[name] for name in real} == real
    assert facts["unknown_shapes"] == 0
    assert facts["modules"][0]["outputs"] == {"output.logits": [1, 8, 1024]}


def test_a_classifier_is_outlined_with_its_head(place, cli):
    save_config("BertForSequenceClassification", place / "bert")
    facts = json.loads(cli("summary", "bert", "--json")[1])
    assert facts["class"] == "BertForSequenceClassification"
    assert facts["modules"][0]["outputs"] == {"output.logits": [1, 3]}


def test_repeated_layers_are_folded_unless_all_are_asked_for(place, cli):
    folded, unfolded = cli("summary", "demo")[1], cli("summary", "demo", "--all")[1]
    assert "      1 to 3: the same (--all)" in folded
    assert folded.count("LlamaMLP") == 1
    assert unfolded.count("LlamaMLP") == 4


def test_depth_cuts_the_table_and_not_the_totals(place, cli):
    _, out, _ = cli("summary", "demo", "--depth", 1)
    assert "LlamaModel" in out
    assert "LlamaMLP" not in out
    facts = json.loads(cli("summary", "demo", "--depth", 1, "--json")[1])
    assert [m["name"] for m in facts["modules"]] == ["root", "model", "lm_head"]
    assert facts["parameters"] == facts["modules"][0]["parameters"]


def test_a_folder_without_a_configuration_is_refused(place, cli):
    (place / "empty").mkdir()
    status, _, err = cli("summary", "empty")
    assert status == IMPOSSIBLE
    assert "holds no config.json" in err


def test_a_name_on_the_hub_needs_its_configuration_only(tmp_path):
    """The cache holds config.json and nothing else, and the hub is out of reach."""
    repo = tmp_path / "hub" / "models--some--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    save_config("LlamaForCausalLM", repo / "snapshots" / "abc")
    code = "from hf_dumper.cli import main; main(['summary', 'some/model', '--json'])"
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == DONE, done.stderr
    assert json.loads(done.stdout)["class"] == "LlamaForCausalLM"
