"""A repository with code of its own, as of 2023, loads, chats, generates and is dumped."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, dynamic_module_utils

from hf_dumper import DumpConfig, DumpingModel, compare, open_dump, register_hook
from hf_dumper.errors import ModelError
from hf_dumper.model import load
from hf_dumper.models.shims import SHIMS
from tests import remote_repo
from tests.commands import opened
from tests.hub_server import HubServer

PROMPTS = ["If you modify", "to"]


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """Code of repositories is copied into a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", folder)
        patch.setattr(sys, "path", [*sys.path])
        yield


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return remote_repo.write(remote_repo.old_repo(), tmp_path_factory.mktemp("repos") / "old")


@pytest.fixture(scope="module")
def todays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repos") / "todays"
    return remote_repo.write(remote_repo.todays_repo(), folder)


@pytest.fixture(scope="module")
def tokenizer(old):
    return AutoTokenizer.from_pretrained(old, trust_remote_code=True)


@pytest.fixture(scope="module")
def plain(todays):
    """The model whose code needs no help, loaded by transformers alone."""
    return AutoModelForCausalLM.from_pretrained(todays, trust_remote_code=True)


def dumped(old, path, **more):
    config = DumpConfig(path, "all", **more)
    return DumpingModel.from_pretrained(old, dump_config=config, trust_remote_code=True)


def by_hand(model, inputs, tokens):
    """Return the ids and logits of a greedy search written out, with nothing of generate()."""
    given, logits = dict(inputs), []
    ids = given.pop("input_ids")
    with torch.no_grad():
        for _ in range(tokens):
            model_inputs = model.prepare_inputs_for_generation(ids, use_cache=True, **given)
            output = model(**model_inputs, return_dict=True)
            logits.append(output.logits[:, -1])
            ids = torch.cat([ids, logits[-1].argmax(-1)[:, None]], dim=1)
            given = model._update_model_kwargs_for_generation(output, given)
    return ids, logits


def last_logits(dump, run, tokens):
    return [dump.load("root", "output.logits", t, run=run)[:, -1] for t in range(tokens)]


def positions(dump, run=0):
    """Return the positions of each forward [rows][columns]."""
    found = {}
    for p in dump.positions(run).to_pylist():
        found.setdefault(p["forward"], {}).setdefault(p["row"], []).append(p["position"])
    return [[row for _, row in sorted(rows.items())] for _, rows in sorted(found.items())]


def test_code_does_not_run_by_default(old, todays, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    for folder in (old, todays):
        with pytest.raises(ModelError, match=r"modeling_tinyglm\.TinyGLM.*trust_remote_code=True"):
            DumpingModel.from_pretrained(folder)


@pytest.mark.parametrize("query", PROMPTS)
def test_it_chats_as_todays_code_does(old, plain, tokenizer, tmp_path, query):
    model = dumped(old, tmp_path / "dump")
    answer, history = model.chat(tokenizer, query)
    again, _ = model.chat(tokenizer, "and?", history)
    model.dump.close()
    ids, _ = by_hand(plain, tokenizer([query], return_tensors="pt"), 6)
    prompt = tokenizer(query).input_ids
    assert answer == tokenizer.decode(ids[0, len(prompt) :]).strip()
    assert history == [(query, answer)]
    with open_dump(tmp_path / "dump") as dump:
        assert dump.runs() == (0, 1)
        facts = dump.run_info(0)
        assert facts["complete"] is True
        assert facts["prompt"]["attention_mask"] == [[1] * len(prompt)]
    assert again


def test_tokens_and_logits_are_those_of_a_search_written_out(old, plain, tokenizer, tmp_path):
    model = dumped(old, tmp_path / "dump")
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    assert inputs["attention_mask"].shape[1:] == (1, 15, 15)
    assert inputs["position_ids"].shape == (2, 2, 15)
    found = model.generate(**inputs, max_new_tokens=5, eos_token_id=None, do_sample=False)
    model.dump.close()
    ids, logits = by_hand(plain, inputs, 5)
    assert torch.equal(found, ids)
    with open_dump(tmp_path / "dump") as dump:
        pairs = zip(last_logits(dump, 0, 5), logits, strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_the_dump_is_whole_and_its_positions_are_right(old, tokenizer, tmp_path):
    model = dumped(old, tmp_path / "dump")
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    model.generate(**inputs, max_new_tokens=3, eos_token_id=None, do_sample=False)
    model.dump.close()
    with open_dump(tmp_path / "dump") as dump:
        lengths = [len(tokenizer(p).input_ids) for p in PROMPTS]
        room = max(lengths) - lengths[1]
        first = [list(range(lengths[0])), [-1] * room + list(range(lengths[1]))]
        later = [[[lengths[0] + i], [lengths[1] + i]] for i in range(2)]
        assert positions(dump) == [first, *later]
        modules = {key.module for key in dump.keys()}  # noqa: SIM118 (a reader is no mapping)
        called = {name for name, m in model.named_modules() if name and not name.endswith("layers")}
        assert modules == called | {"root"}
        given = dump.load("root", "input.position_ids")
        assert torch.equal(given, inputs["position_ids"])
        mask = dump.load("root", "input.attention_mask")
        assert torch.equal(mask, inputs["attention_mask"].bool())
        keys = dump.load("transformer.layers.0", "output.1.0", token=2)
        assert keys.shape == (max(lengths) + 2, 2, 4, 8)
        assert dump.load("transformer.layers.0.mlp", "output", 0).shape == (15, 2, 32)
        assert dump.load("transformer.layers.0.mlp", "output", 0, row=1).shape == (15, 32)


def test_columns_before_rows_are_aligned_with_single_runs(old, tokenizer, tmp_path):
    """The batch of two is compared with each prompt alone, though blocks have rows second."""
    for name, batches in (("golden", [[p] for p in PROMPTS]), ("candidate", [PROMPTS])):
        model = dumped(old, tmp_path / name)
        for texts in batches:
            inputs = tokenizer(texts, return_tensors="pt", padding=len(texts) > 1)
            model.generate(**inputs, max_new_tokens=3, eos_token_id=None, do_sample=False)
        model.dump.close()
    found = compare(tmp_path / "golden", tmp_path / "candidate")
    rows = found.results.to_pylist()
    outputs = [r for r in rows if r["slot"] == "output.0" and r["module"].endswith("layers.1")]
    assert len(outputs) == 6
    assert all(r["verdict"] in ("pass", "identical") for r in outputs)
    assert found.divergence is None, found.divergence


def test_what_is_registered_by_hand_is_the_same(old, plain, tokenizer, tmp_path):
    model = load(old, trust_remote_code=True)
    ids = tokenizer("to", return_tensors="pt").input_ids
    before = set(vars(model))
    with register_hook(model, DumpConfig(tmp_path / "dump", "all")):
        with_dump = model.generate(ids, max_new_tokens=4)
    assert set(vars(model)) - before == {"dump"}
    assert torch.equal(with_dump, model.generate(ids, max_new_tokens=4))
    assert torch.equal(with_dump, plain.generate(ids, max_new_tokens=4))


def test_shims_are_told_and_those_of_loading_are_undone(old, todays, tmp_path):
    before = PreTrainedModel.__dict__["_finalize_model_loading"]
    model = dumped(old, tmp_path / "old")
    assert PreTrainedModel.__dict__["_finalize_model_loading"] is before
    shims = set(open_dump(tmp_path / "old").manifest["shims"])
    assert shims - {"generation_mixin"} == {"post_init", "num_hidden_layers", "old_generation"}
    again = load(old, trust_remote_code=True)
    assert callable(again.generate)
    assert "generation_mixin" in again._hf_dumper_shims
    assert "num_hidden_layers" not in model.config.to_dict()
    assert type(model).__name__ == "TinyGLMForConditionalGeneration"
    dumped(todays, tmp_path / "todays")
    assert "old_generation" not in open_dump(tmp_path / "todays").manifest["shims"]
    assert "post_init" not in open_dump(tmp_path / "todays").manifest["shims"]


def test_a_model_of_transformers_needs_no_shim(tiny_llama, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "tiny")
    config = DumpConfig(tmp_path / "dump")
    model = DumpingModel.from_pretrained(tmp_path / "tiny", dump_config=config)
    assert opened(tmp_path / "dump").manifest["shims"] == {}
    assert "_hf_dumper_shims" not in vars(model)


def test_a_cache_of_transformers_is_told_the_layers(tmp_path, tokenizer):
    files = remote_repo.todays_repo()
    code = files["modeling_tinyglm.py"].decode()
    code = code.replace("if past_key_values is not None:", "if isinstance(past_key_values, tuple):")
    code = code.replace("def _supports_default_dynamic_cache", "def _not_called")
    config = files["configuration_tinyglm.py"].decode().replace("attribute_map", "_no_map")
    files |= {"modeling_tinyglm.py": code.encode(), "configuration_tinyglm.py": config.encode()}
    folder = remote_repo.write(files, tmp_path / "layers")
    ids = tokenizer("to", return_tensors="pt").input_ids
    unhelped = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    with pytest.raises(AttributeError, match="num_hidden_layers"):
        unhelped.generate(ids, max_new_tokens=2)
    model = load(folder, trust_remote_code=True)
    assert model.generate(ids, max_new_tokens=2).shape[1] == ids.shape[1] + 2
    assert list(model._hf_dumper_shims) == ["num_hidden_layers"]


def test_a_pickle_in_a_shard_does_not_run(tmp_path):
    mark = tmp_path / "mark"
    files = remote_repo.with_payload(remote_repo.old_repo(), mark)
    folder = remote_repo.write(files, tmp_path / "bad")
    shard = min(folder.glob("*.bin"))
    with pytest.raises(Exception, match=r"(?i)weights_only|unpickl"):
        load(folder, trust_remote_code=True)
    assert not mark.exists()
    torch.load(shard, weights_only=False)  # and the payload is a real one
    assert mark.exists()


def test_tuples_for_a_cache_tell_no_length(old, tokenizer, tmp_path):
    """A bare forward with a cache of tuples has no positions, rather than wrong ones."""
    model = dumped(old, tmp_path / "dump")
    inputs = tokenizer(["to"], return_tensors="pt")
    with torch.no_grad():
        past = model(**inputs, use_cache=True).past_key_values
        more = torch.tensor([[[2], [3]]])
        model(torch.tensor([[7]]), past_key_values=past, position_ids=more, use_cache=True)
    model.dump.close()
    with open_dump(tmp_path / "dump") as dump:
        assert positions(dump, 0) == [[[0, 1, 2, 3]]]
        assert positions(dump, 1) in ([], [[[None]]])


def test_run_describe_and_rerun(old, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ("run", old, "--prompt", "to", "--max-new-tokens", 3, "--token-range", "all")
    status, _, told = cli(*run, "--dump", "d")
    assert status == 2
    assert "--trust-remote-code" in told
    status, _, told = cli(*run, "--dump", "d", "--trust-remote-code", "--self-check")
    assert status == 0, told
    assert cli("verify", "d", "--rerun", "--trust-remote-code")[0] == 0
    status, said, _ = cli("describe", old)
    assert status == 0
    assert "own code    needed (--trust-remote-code): AutoConfig" in said
    status, said, _ = cli("describe", old, "--trust-remote-code")
    assert status == 0
    assert "dump        not known: a forward without values is not possible" in said
    assert cli("summary", old, "--trust-remote-code")[0] == 0


def test_run_from_a_hub(tmp_path):
    """In a process of its own: where the hub is, is read when transformers is imported."""
    with HubServer() as hub:
        hub.add("you/glm", remote_repo.old_repo())
        offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
        env = {k: v for k, v in os.environ.items() if k not in offline}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-m", "hf_dumper", "run", "you/glm", "--prompt", "to"]
        command += ["--max-new-tokens", "2", "--dump", str(tmp_path / "d")]
        environment = {"env": env, "capture_output": True, "text": True, "timeout": 100}
        refused = subprocess.run(command, **environment)
        assert refused.returncode == 2
        assert "--trust-remote-code" in refused.stderr
        assert not [a for a in hub.contents() if a.path.endswith((".py", ".bin"))]
        done = subprocess.run([*command, "--trust-remote-code"], **environment)
    assert done.returncode == 0, done.stderr
    manifest = open_dump(tmp_path / "d").manifest
    assert set(manifest["shims"]) <= set(SHIMS)
    assert "post_init" in manifest["shims"]
