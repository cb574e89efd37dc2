"""Weights on disk: whole, sharded, checked, and read one at a time."""

import json
import weakref

import pytest
import torch
from safetensors.torch import load_file

from hf_dumper.core.weights import Weight
from hf_dumper.errors import (
    DumpFormatError,
    DumpIdentityError,
    DumpWriteError,
    KeyNotFoundError,
)
from hf_dumper.store.mapping import ShardMaps
from hf_dumper.store.pth import read_pth
from hf_dumper.store.weights import (
    Weights,
    check_weights,
    native_weights,
    write_weight_files,
    write_weights,
)

TENSORS = {
    "a.flag": torch.tensor([True, False, True]),
    "a.weight": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "a.half": torch.randn(7, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "b.count": torch.tensor(5),
    "b.empty": torch.zeros(0, 4),
    "b/../c ~%": torch.arange(3),
}


def weight(name, tensor, *others, reason=""):
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Weight(
        (name, *others), "weight", dtype, tuple(tensor.shape), tensor.nbytes, reason, lambda: tensor
    )


def all_weights():
    return [weight(name, tensor) for name, tensor in TENSORS.items()]


def opened(path):
    return native_weights(path, ShardMaps())


@pytest.mark.parametrize("shard_bytes", [1, 70, 1 << 30])
def test_every_weight_comes_back(tmp_path, shard_bytes):
    write_weights(tmp_path / "weights", all_weights(), shard_bytes=shard_bytes)
    weights = opened(tmp_path)
    assert set(weights) == TENSORS.keys()
    for name, want in TENSORS.items():
        assert weights[name].dtype is want.dtype
        assert torch.equal(weights[name], want)
        assert torch.equal(weights[f"root.{name}"], want)


@pytest.mark.parametrize(("shard_bytes", "files"), [(1, 6), (70, 2), (1 << 30, 1)])
def test_files_are_plain_safetensors_and_of_the_size_asked_for(tmp_path, shard_bytes, files):
    write_weights(tmp_path / "weights", all_weights(), shard_bytes=shard_bytes)
    shards = sorted((tmp_path / "weights").glob("*.safetensors"))
    assert len(shards) == files
    found = {}
    for shard in shards:
        found |= load_file(shard)
    assert all(torch.equal(found[name], want) for name, want in TENSORS.items())
    assert found.keys() == TENSORS.keys()


@pytest.mark.parametrize("layout", ["native", "msit"])
def test_one_tensor_is_in_memory_at_a_time(tmp_path, layout):
    alive = []

    def load(i):
        assert not [ref for ref in alive if ref() is not None]
        tensor = torch.full((4,), float(i))
        alive.append(weakref.ref(tensor))
        return tensor

    weights = [
        Weight((f"w{i}",), "weight", "float32", (4,), 16, "", lambda i=i: load(i)) for i in range(3)
    ]
    if layout == "native":
        write_weights(tmp_path / "weights", weights)
    else:
        write_weight_files(tmp_path, "weights", tmp_path, weights)
    assert len(alive) == 3


def test_tied_names_have_one_tensor_between_them(tmp_path):
    tensor = torch.ones(1000)
    write_weights(tmp_path / "weights", [weight("a", tensor, "b")])
    assert (tmp_path / "weights" / "weights-00000.safetensors").stat().st_size < 5000
    weights = opened(tmp_path)
    assert len(weights) == 2
    assert torch.equal(weights["b"], tensor)


def test_a_weight_without_values_says_why(tmp_path):
    write_weights(tmp_path / "weights", [weight("a", TENSORS["a.flag"], reason="no values")])
    weights = opened(tmp_path)
    assert weights.skipped == {"a": "no values"}
    assert "a" not in weights
    with pytest.raises(KeyNotFoundError, match="'a' was not dumped: no values"):
        weights["a"]


def test_an_unknown_name_is_an_error_that_names_the_nearest(tmp_path):
    write_weights(tmp_path / "weights", all_weights())
    with pytest.raises(KeyNotFoundError, match=r"'a\.weight'"):
        opened(tmp_path)["a.weigth"]


def test_what_breaks_off_leaves_no_weights(tmp_path):
    def fail():
        raise OSError(28, "No space left on device")

    broken = Weight(("z",), "weight", "float32", (1,), 4, "", fail)
    with pytest.raises(OSError, match="No space"):
        write_weights(tmp_path / "weights", [*all_weights(), broken])
    assert not (tmp_path / "weights").exists()
    write_weights(tmp_path / "weights", all_weights())
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_weight_that_is_not_what_it_was_said_to_be_is_an_error(tmp_path):
    liar = Weight(("z",), "weight", "float32", (1,), 4, "", lambda: torch.ones(2))
    with pytest.raises(DumpWriteError, match="'z'"):
        write_weights(tmp_path / "weights", [liar])


def test_the_same_weights_pass_and_others_do_not(tmp_path):
    write_weights(tmp_path / "weights", all_weights())
    check_weights(tmp_path / "weights", all_weights())
    changed = [weight("a.weight", TENSORS["a.weight"] + 1)]
    with pytest.raises(DumpIdentityError, match=r"'a\.weight' differs"):
        check_weights(tmp_path / "weights", changed)


@pytest.mark.parametrize("text", ["{", "{}", '{"tensors": 3, "skipped": {}}', '{"tensors": []}'])
def test_a_damaged_index_is_an_error(tmp_path, text):
    write_weights(tmp_path / "weights", all_weights())
    (tmp_path / "weights" / "index.json").write_text(text)
    with pytest.raises(DumpFormatError, match=r"index\.json is damaged"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"shard": "../x"}, {"offset": 1 << 40}, {"offset": -1}, {"shape": [99]}, {"dtype": "object"}],
)
def test_an_index_that_lies_is_an_error(tmp_path, changes):
    write_weights(tmp_path / "weights", all_weights())
    path = tmp_path / "weights" / "index.json"
    facts = json.loads(path.read_text())
    facts["tensors"]["a.weight"] |= changes
    path.write_text(json.dumps(facts))
    with pytest.raises(DumpFormatError):
        opened(tmp_path)["a.weight"]


def test_msit_has_a_file_for_each_name(tmp_path):
    write_weight_files(
        tmp_path, "in/weights", tmp_path, [*all_weights(), weight("x", torch.ones(2), "y")]
    )
    files = {path.name for path in (tmp_path / "in" / "weights").iterdir()}
    assert {"root.a.weight.pth", "root.x.pth", "root.y.pth"} <= files
    assert "root.b%2F..%2Fc%20%7E%25.pth" in files
    assert torch.load(tmp_path / "in/weights/root.y.pth").tolist() == [1, 1]
    weights = Weights(tmp_path / "weights.json", lambda row: read_pth(tmp_path, row))
    assert all(torch.equal(weights[name], want) for name, want in TENSORS.items())
    assert weights["y"].tolist() == [1, 1]
