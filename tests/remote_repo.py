"""A repository with code of its own, as they were in early 2023; and the same model as of today.

`old_repo()` and `todays_repo()` give the files: the same weights, and the same forward. The old one
needs help to load and to generate, today's loads with `AutoModelForCausalLM` as it is.
"""

import io
import json
from pathlib import Path

import torch

_CODE = Path(__file__).parent / "remote"
_SHARDS = 2
_SPECIAL = {"pad_token": "<pad>", "eos_token": "<eop>", "additional_special_tokens": []}

_NORM = "        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config."
_NORM += "layernorm_epsilon)\n"
_HEAD = "config.vocab_size, bias=False)\n"
_POST_INIT = "        self.post_init()\n"
_CLASS = "class TinyGLMForConditionalGeneration(TinyGLMPreTrainedModel"
_PREPARE = "    def prepare_inputs_for_generation("
_PAST = """self._extract_past_from_model_output(
            outputs, standardize_cache_format=standardize_cache_format
        )"""
_OF_ITS_OWN = """    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False

    def _prepare_position_ids_for_generation(self, *args):
        return None

"""
_TYPE = '    model_type = "tinyglm"\n'

_ANEW = {
    "modeling_tinyglm.py": [
        ("import PreTrainedModel\n", "import GenerationMixin, PreTrainedModel\n"),
        (f"{_CLASS}):", f"{_CLASS}, GenerationMixin):"),
        (_NORM, _NORM + _POST_INIT),
        (_HEAD, _HEAD + _POST_INIT),
        (_PAST, "outputs.past_key_values"),
        (_PREPARE, _OF_ITS_OWN + _PREPARE),
    ],
    "configuration_tinyglm.py": [
        (_TYPE, f'{_TYPE}    attribute_map = {{"num_hidden_layers": "num_layers"}}\n'),
    ],
}
"""What of the code is written in another way today."""

_PARTS = {
    "AutoConfig": "configuration_tinyglm.TinyGLMConfig",
    "AutoModel": "modeling_tinyglm.TinyGLMForConditionalGeneration",
}


def old_repo(seed=0):
    """Return path -> content: code, .bin shards with an index, and auto_map with AutoModel only."""
    return _repo(seed, _PARTS, {})


def todays_repo(seed=0):
    """Return the same model, whose code needs no help."""
    more = {"AutoModelForCausalLM": _PARTS["AutoModel"]}
    return _repo(seed, _PARTS | more, _ANEW)


def write(files, folder):
    """Write the files of a repository into a new folder, and return it."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def _repo(seed, parts, changes):
    config = {"model_type": "tinyglm", "architectures": ["TinyGLMForConditionalGeneration"]}
    config |= {"auto_map": parts, "num_layers": 2, "hidden_size": 32, "torch_dtype": "float32"}
    name = ["tokenization_tinyglm.TinyGLMTokenizer", None]
    tokenizer = {"auto_map": {"AutoTokenizer": name}, "tokenizer_class": "TinyGLMTokenizer"}
    files = {
        "config.json": _json(config),
        "tokenizer_config.json": _json(tokenizer | _SPECIAL),
        "tiny_vocab.json": _json(vocabulary()),
    }
    code = {path.name: _changed(path, changes.get(path.name, ())) for path in _CODE.glob("*.py")}
    return files | code | _shards(_weights(seed))


def vocabulary():
    """Return the ids of the characters of ASCII, then of the special tokens."""
    characters = {chr(i): i for i in range(128)}
    return characters | {"<pad>": 128, "[gMASK]": 129, "<sop>": 130, "<eop>": 131}


def _changed(path, changes):
    code = path.read_text()
    for before, after in changes:
        assert before in code, f"{path.name} has no {before!r}"
        code = code.replace(before, after)
    return code.encode()


def _json(value):
    return json.dumps(value, indent=1).encode()


def _weights(seed):
    """Return random weights; a norm of ones or a bias of zeros would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner, vocabulary_size = 32, 48, 132
    shapes = {"transformer.word_embeddings.weight": (vocabulary_size, hidden)}
    for i in range(2):
        layer = f"transformer.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{layer}.{norm}.{kind}": (hidden,) for kind in ("weight", "bias")}
        for name, rows, columns in (
            ("attention.query_key_value", 3 * hidden, hidden),
            ("attention.dense", hidden, hidden),
            ("mlp.dense_h_to_4h", inner, hidden),
            ("mlp.dense_4h_to_h", hidden, inner),
        ):
            shapes |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (rows,)}
    shapes |= {f"transformer.final_layernorm.{kind}": (hidden,) for kind in ("weight", "bias")}
    shapes["lm_head.weight"] = (vocabulary_size, hidden)
    found = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        is_norm = "norm.weight" in name
        found[name] = 1 + 0.1 * noise if is_norm else (0.5 if len(shape) > 1 else 0.1) * noise
    for i in range(2):  # a buffer, which repositories of that time saved too
        found[f"transformer.layers.{i}.attention.rotary_emb.inv_freq"] = 1.0 / (
            10000 ** (torch.arange(0, 4, 2).float() / 4)
        )
    return found


def _shards(weights):
    names = list(weights)
    half = -(-len(names) // _SHARDS)
    parts = [names[i : i + half] for i in range(0, len(names), half)]
    files, places = {}, {}
    for number, part in enumerate(parts, 1):
        shard = f"pytorch_model-{number:05d}-of-{len(parts):05d}.bin"
        buffer = io.BytesIO()
        torch.save({name: weights[name].clone() for name in part}, buffer)
        files[shard] = buffer.getvalue()
        places |= dict.fromkeys(part, shard)
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    return files | {"pytorch_model.bin.index.json": _json(index)}


class _Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def with_payload(files, path):
    """Return the files with a shard that makes the file at `path` when a pickle of it is loaded."""
    shard = min(name for name in files if name.endswith(".bin"))
    buffer = io.BytesIO()
    torch.save(torch.load(io.BytesIO(files[shard])) | {"more": _Payload(path)}, buffer)
    return files | {shard: buffer.getvalue()}
