"""A truncated checkpoint computes what the model does after its layers were cut in memory."""

import json
import re
import shutil
import tracemalloc

import pytest
import torch
import transformers as hf
from safetensors import safe_open
from safetensors.torch import load_file

from hf_dumper.errors import ConfigError, ModelError
from hf_dumper.model import empty_model
from hf_dumper.models import streaming
from hf_dumper.models import truncate as module
from hf_dumper.models.files import FolderFiles
from hf_dumper.models.headers import data_start, read_header
from hf_dumper.models.truncate import truncate

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
HYBRID = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**SHAPE, num_hidden_layers=4),
    "llama tied": lambda: hf.LlamaConfig(**SHAPE, num_hidden_layers=4, tie_word_embeddings=True),
    "qwen2": lambda: hf.Qwen2Config(
        **SHAPE, num_hidden_layers=4, use_sliding_window=True, sliding_window=3, max_window_layers=3
    ),
    "gemma": lambda: hf.Gemma3TextConfig(
        **SHAPE, num_hidden_layers=4, head_dim=8, sliding_window=3, layer_types=HYBRID
    ),
    "mixtral": lambda: hf.MixtralConfig(**SHAPE, num_hidden_layers=4, num_local_experts=4),
    "gpt2": lambda: hf.GPT2Config(vocab_size=96, n_embd=32, n_head=4, n_layer=4),
    "t5": lambda: hf.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=4, num_decoder_layers=3
    ),
    "llava": lambda: hf.LlavaConfig(
        text_config=hf.LlamaConfig(**SHAPE, num_hidden_layers=4),
        vision_config=hf.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=16,
            patch_size=8,
        ),
        image_token_index=95,
    ),
}
CLASSES = {"t5": hf.AutoModelForSeq2SeqLM, "llava": hf.AutoModelForImageTextToText}


def made(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = CLASSES.get(name, hf.AutoModelForCausalLM).from_config(CONFIGS[name]())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return model.eval()


def cut_in_memory(model, layers):
    """Keep the first layers of each list of the language model, and what counts them."""
    for name, child in list(model.named_modules()):
        above, _, last = name.rpartition(".")
        if last in ("layers", "h", "block") and "vision" not in name:
            setattr(model.get_submodule(above), last, child[:layers])
    for module_ in model.modules():
        config = getattr(module_, "config", None)
        text = getattr(config, "text_config", config)
        if text is not None and hasattr(text, "layer_types") and text.layer_types:
            text.layer_types = text.layer_types[:layers]
        if text is not None and "vision" not in type(text).__name__.lower():
            text.num_hidden_layers = layers
            if hasattr(text, "num_decoder_layers"):
                text.num_decoder_layers = min(layers, text.num_decoder_layers)
    return model


def logits(model):
    ids = torch.arange(2, 12)[None]
    given = {"decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **given, use_cache=False).logits


def loaded(folder, name):
    return CLASSES.get(name, hf.AutoModelForCausalLM).from_pretrained(folder, dtype="auto").eval()


def cut(source, out, layers=2):
    return truncate(FolderFiles(source), out, layers, empty_model)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shard", ["50GB", "20kB"], ids=["whole", "sharded"])
def test_it_equals_the_model_that_was_cut_in_memory(name, shard, tmp_path):
    made(name).save_pretrained(tmp_path / "model", max_shard_size=shard)
    is_sharded = (tmp_path / "model" / "model.safetensors.index.json").exists()
    assert is_sharded == (shard == "20kB")
    cut(tmp_path / "model", tmp_path / "out")
    want = logits(cut_in_memory(loaded(tmp_path / "model", name), 2))
    model, info = CLASSES.get(name, hf.AutoModelForCausalLM).from_pretrained(
        tmp_path / "out", dtype="auto", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(model.eval()), want)
    assert not torch.equal(want, logits(loaded(tmp_path / "model", name)))


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_weights_keep_their_place_within_64_bytes(name, tmp_path):
    """The last bit of a kernel may depend on it."""
    made(name).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    for padding in (0, 8, 40):
        length = int.from_bytes(path.read_bytes()[:8], "little")
        held = path.read_bytes()[8:]
        grown = (length + padding).to_bytes(8, "little") + held[:length] + b" " * padding
        path.write_bytes(grown + held[length:])
        out = tmp_path / f"out{padding}"
        cut(tmp_path / "model", out)
        places = [place_of(file) for file in (path, out / "model.safetensors")]
        assert all(places[0][tensor] == at for tensor, at in places[1].items())


def place_of(path):
    start = data_start(path)
    return {tensor.name: (start + tensor.begin) % 64 for tensor in read_header(path)}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["llama tied", "mixtral"])
def test_bin_files_become_safetensors(name, zipped, tmp_path):
    model = made(name)
    model.save_pretrained(tmp_path / "model")
    state = load_file(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    names = sorted(state)
    places = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"pytorch_model-{i + 1:05}-of-00002.bin"
        held = {name: state[name] for name in part}
        torch.save(held, tmp_path / "model" / file, _use_new_zipfile_serialization=zipped)
        places |= dict.fromkeys(part, file)
    index = tmp_path / "model" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    cut(tmp_path / "model", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.bin*"))
    want = logits(cut_in_memory(model, 2))
    assert torch.equal(logits(loaded(tmp_path / "out", name)), want)


def test_a_bin_file_that_would_run_code_is_refused(tmp_path):
    made("llama").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Runs(tmp_path / "ran")}, tmp_path / "model/pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be read as tensors alone"):
        cut(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


class Runs:
    """A pickle of it writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_tied_weights_stay_tied(tmp_path):
    made("llama tied").save_pretrained(tmp_path / "model")
    cut(tmp_path / "model", tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert "lm_head.weight" not in names
    model = loaded(tmp_path / "out", "llama tied")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_configuration_keeps_all_but_what_counts_layers(tmp_path):
    made("gemma").save_pretrained(tmp_path / "model")
    cut(tmp_path / "model", tmp_path / "out", 3)
    old, new = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("model", "out"))
    assert new == old | {"num_hidden_layers": 3, "layer_types": HYBRID[:3]}


def test_max_window_layers_is_no_more_than_there_are_layers(tmp_path):
    made("qwen2").save_pretrained(tmp_path / "model")
    cut(tmp_path / "model", tmp_path / "out", 2)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["max_window_layers"] == 2
    assert len(config["layer_types"]) == 2


def test_other_files_are_copied_and_other_weights_are_not(tmp_path):
    source = tmp_path / "model"
    made("llama").save_pretrained(source)
    (source / "sub").mkdir()
    others = {"tokenizer.json": "{}", "README.md": "hello", "sub/note.txt": "x"}
    for name, text in others.items():
        (source / name).write_text(text)
    (source / "model.gguf").write_text("another format")
    done = cut(source, tmp_path / "out")
    assert {n: (tmp_path / "out" / n).read_text() for n in others} == others
    was, is_ = (f / "generation_config.json" for f in (source, tmp_path / "out"))
    assert was.read_bytes() == is_.read_bytes()
    assert done.not_copied == ("model.gguf",)
    assert not (tmp_path / "out" / "model.gguf").exists()


def test_no_more_than_some_pieces_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "PIECE", 1 << 16)
    config = hf.LlamaConfig(**SHAPE | {"hidden_size": 512, "intermediate_size": 2048})
    config.num_hidden_layers = 3
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert size > 40e6
    largest = 2048 * 512 * 4
    done = peak_of(monkeypatch, lambda: cut(tmp_path / "model", tmp_path / "out"))
    assert done < 4 * (1 << 16) < largest


def peak_of(monkeypatch, work):
    """Return the most bytes that Python holds more while weights are written."""
    peaks = []
    write = module._write_shards

    def measured(*args):
        tracemalloc.start()
        try:
            return write(*args)
        finally:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    monkeypatch.setattr(module, "_write_shards", measured)
    work()
    return peaks[0]


@pytest.mark.parametrize("layers", [0, -1])
def test_at_least_one_layer_is_kept(layers, tmp_path):
    with pytest.raises(ConfigError, match="at least one layer"):
        cut(tmp_path, tmp_path / "out", layers)


def test_as_many_layers_as_there_are_is_refused(tmp_path):
    made("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="counts no layers beyond 4"):
        cut(tmp_path / "model", tmp_path / "out", 4)


def test_what_lies_at_the_new_place_is_kept(tmp_path):
    made("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="there already"):
        cut(tmp_path / "model", tmp_path / "model")


def test_a_file_that_is_cut_off_leaves_nothing_behind(tmp_path):
    made("llama").save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cut off"):
        cut(tmp_path / "model", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path):
    made("llama").save_pretrained(tmp_path / "model", max_shard_size="20kB")
    index = tmp_path / "model" / "model.safetensors.index.json"
    shutil.copy(next((tmp_path / "model").glob("*.safetensors")), tmp_path / "x.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(ModelError, match="outside of the model"):
        cut(tmp_path / "model", tmp_path / "out")


def test_command_writes_a_model_that_runs(cli, place):
    status, out, err = cli("truncate", "tiny", "small", "--layers", 1)
    assert (status, err) == (0, "")
    assert "changed     num_hidden_layers: 2 to 1" in out
    status, out, err = cli("run", "small", "--prompt", "one", "--dump", "d")
    assert (status, err) == (0, "")
    assert cli("truncate", "tiny", "small", "--layers", 1)[0] == 2


def test_command_as_json(cli, place):
    status, out, _ = cli("truncate", "tiny", "small", "--layers", 1, "--json")
    told = json.loads(out)
    assert (status, told["stacks"]) == (0, {"model.layers": 1})
    assert told["kept"] == len(load_file(place / "small" / "model.safetensors"))


def test_of_the_hub_only_shards_with_kept_layers_are_downloaded(served, tmp_path):
    source = tmp_path / "model"
    made("llama").save_pretrained(source, max_shard_size="20kB")
    code = "from hf_dumper.cli import main; main(['truncate', 'o/m', 'out', '--layers', '1'])"
    hub, done = served(source, code)
    assert done.returncode == 0, done.stderr
    cut(source, tmp_path / "here", 1)
    want, got = (logits(loaded(tmp_path / name, "llama")) for name in ("here", "out"))
    assert torch.equal(got, want)
    weights = {p.name: p.stat().st_size for p in source.glob("*.safetensors")}
    whole = {name for name, size in weights.items() if hub.sent.get(name, 0) >= size}
    index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if not re.search(r"layers\.[1-9]", name)}
    assert whole == needed < weights.keys()
