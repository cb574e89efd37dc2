"""Quantised models are dumped without touching `weight` blindly, and compared with float ones."""

import pytest
import torch
from torch import nn

from hf_dumper import DumpConfig, compare, open_dump, register_hook
from hf_dumper.diagnose.rerun import rerun
from hf_dumper.errors import DumpWarning

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]
IDS = torch.tensor([[5, 6, 7, 8, 9]])
Q = "model.layers.0.self_attn.q_proj"


class InParts(torch.Tensor):
    """A weight of int8 rows and their scales, as libraries write them: it has no memory itself."""

    @staticmethod
    def __new__(cls, qdata, scale):
        return torch.Tensor._make_wrapper_subclass(cls, qdata.shape, dtype=scale.dtype)

    def __init__(self, qdata, scale):
        self.qdata, self.scale = qdata, scale

    def __tensor_flatten__(self):
        return ["qdata", "scale"], None

    @classmethod
    def of(cls, weight):
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].qdata, args[0].scale)

        def plain(value):
            return value.qdata * value.scale if isinstance(value, cls) else value

        args, kwargs = torch.utils._pytree.tree_map(plain, (args, kwargs or {}))
        return func(*args, **kwargs)


def dynamic(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def in_parts(model):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = InParts.of(module.weight.detach())
            module.weight = nn.Parameter(weight, requires_grad=False)
    return model


def with_torchao(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


KINDS = {
    "dynamic": (dynamic, "int_repr", "torch.ao.nn.quantized.dynamic.modules.linear.Linear"),
    "in parts": (in_parts, "qdata", "InParts"),
    "torchao": (with_torchao, "qdata", "Int8Tensor"),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def generated(model):
    terms = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    result = model.generate(IDS, output_logits=True, **terms)
    return torch.stack(result.logits)


def dumped(model, path, **more):
    with register_hook(model, DumpConfig(path, "all", dump_weight=True, **more)):
        generated(model)
    return path


def test_tokens_and_logits_are_those_of_the_plain_model(kind, tiny_llama, tmp_path):
    model = kind[0](tiny_llama())
    plain = generated(model)
    with register_hook(model, DumpConfig(tmp_path / "dump", "all")):
        assert torch.equal(generated(model), plain)
    with open_dump(tmp_path / "dump") as dump:
        hidden = dump.load("model.norm", "output", 2)
        assert torch.equal(model.lm_head(hidden)[:, -1], plain[2])
        assert dump.load(Q, "output").shape == (1, 5, 64)
        assert dump.run_info(0)["counts"]["skipped"] == 0


def test_weights_are_the_parts_they_are_made_of(kind, tiny_llama, tmp_path):
    make, integers, _ = kind
    model = make(tiny_llama())
    dumped(model, tmp_path / "dump")
    with open_dump(tmp_path / "dump") as dump:
        weights = dump.weights()
        assert weights.skipped == {}
        assert weights[f"{Q}.weight.{integers}"].dtype == torch.int8
        made = weights[f"{Q}.weight.{integers}"] * weights[f"{Q}.weight.scale"].reshape(-1, 1)
        if integers == "int_repr":
            expected = model.get_submodule(Q).weight().dequantize()
            assert torch.equal(weights[f"{Q}.bias"], model.get_submodule(Q).bias())
        else:
            expected = tiny_llama().get_submodule(Q).weight.detach()
        assert (made - expected).abs().max() <= weights[f"{Q}.weight.scale"].max()
        assert f"{Q}.weight" not in weights
        hashes = dump.manifest["weights"]
        assert all(entry["hash"] for entry in hashes.values())
        assert f"{Q}.weight.{integers}" in hashes


def test_the_manifest_tells_what_is_quantised(kind, tiny_llama, tmp_path):
    model = kind[0](tiny_llama())
    dumped(model, tmp_path / "dump")
    assert open_dump(tmp_path / "dump").manifest["quantised"] == {kind[2]: 15}


def test_other_integers_are_another_dump(kind, tiny_llama, tmp_path):
    hashes = []
    for seed in (0, 1):
        dumped(kind[0](tiny_llama(seed)), tmp_path / str(seed))
        hashes.append(open_dump(tmp_path / str(seed)).manifest["weights"])
    same = [name for name in hashes[0] if hashes[0][name]["hash"] == hashes[1][name]["hash"]]
    assert all(name.endswith(("zero_point", "_proj.scale", "lm_head.scale")) for name in same)


def test_an_int8_candidate_parts_where_its_first_weight_rounds(kind, tiny_llama, tmp_path):
    dumped(tiny_llama(), tmp_path / "golden")
    dumped(kind[0](tiny_llama()), tmp_path / "candidate")
    found = compare(tmp_path / "golden", tmp_path / "candidate")
    assert found.verdict == "fail"
    assert (found.divergence.module, found.divergence.kind) in {(Q, "source"), (Q, "functional")}
    told = next(f for f in found.regime if f.subject == "quantised weights")
    assert (told.golden, told.candidate) == ("none", f"15 {kind[2]}")


def test_run_again_it_gives_the_same_bits(kind, tiny_llama, tmp_path):
    dumped(kind[0](tiny_llama()), tmp_path / "dump")
    assert rerun(tmp_path / "dump", kind[0](tiny_llama())).verdict == "equal"
    again = rerun(tmp_path / "dump", tiny_llama())
    assert again.verdict == "differs"
    assert again.changed


def test_weights_that_cannot_be_unpacked_are_told(tiny_llama, tmp_path):
    class WithMemory(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 4)

        def forward(self, x):
            return self.lstm(x)[0]

    kinds = {nn.LSTM}
    model = torch.ao.quantization.quantize_dynamic(WithMemory(), kinds, dtype=torch.qint8)
    config = DumpConfig(tmp_path / "dump", dump_weight=True)
    with (
        pytest.warns(DumpWarning, match="packed away in a PackedParameter"),
        register_hook(model, config),
    ):
        model(torch.randn(2, 1, 4))
    assert open_dump(tmp_path / "dump").weights().skipped


def test_msit_layout_takes_the_parts_too(tiny_llama, tmp_path):
    dumped(dynamic(tiny_llama()), tmp_path / "dump", layout="msit")
    names = {path.name for path in tmp_path.rglob("*.pth")}
    assert f"root.{Q}.weight.int_repr.pth" in names
