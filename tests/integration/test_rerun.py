"""`hf-dumper verify --rerun`: the same bits again, or what is not as it was."""

import json
import shutil

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_dumper import DEMO_MODEL, DumpConfig, register_hook
from hf_dumper.cli.failures import DONE, FAILED, IMPOSSIBLE
from hf_dumper.core.digests import sealed
from hf_dumper.store.files import file_digest
from hf_dumper.store.tables import write_parquet
from tests.commands import opened, run_tiny, save_model
from tests.demo_dumps import make_dump
from tests.faults import fail_at, os_error

RUN = "d/runs/000000/run.json"
INDEX = "rank-0/index.parquet"


@pytest.fixture
def again(cli):
    """Return a function that dumps as told, repeats, and returns (status, output)."""

    def call(*run):
        if run:
            assert cli(*run)[0] == DONE
        status, out, err = cli("verify", "d", "--rerun")
        assert err == ""
        return status, out

    return call


def edit(path, change):
    """Change the facts of a run by a function, and their digest with them."""
    facts = json.loads(path.read_text("utf-8"))
    change(facts)
    path.write_text(json.dumps(sealed({k: v for k, v in facts.items() if k != "digest"})))


# --- equal ----------------------------------------------------------------------------------------


def test_the_demo_model_gives_the_same_bits_again(place, again):
    run = ("run", "demo", "--prompt", "You may copy", "--prompt", "The licence applies to")
    status, out = again(*run, "--token-range", "all", "--max-new-tokens", 4, "--dump", "d")
    assert status == DONE
    assert out.startswith("INTACT  ")
    assert "\nEQUAL  run again, the model gives the same records and tokens, bit for bit\n" in out
    for number in (0, 1):
        records = opened(place / "d").index(number).num_rows
        assert f"run {number}: {records} of {records} records are the same" in out
    assert "changed" not in out


@pytest.mark.parametrize(
    "more",
    [
        ("--token-range", "0-1", "--seed", 3, "--do-sample", "--temperature", 2),
        ("--statistics", "statistics"),
        ("--statistics", "both", "--tensor-part", 1, "--layer-name", "model.layers.*"),
        ("--dump-last-logits", "--no-hash-weights"),
        ("--module-list", "Linear", "--attn-implementation", "eager"),
        ("--dtype", "bfloat16"),
    ],
)
def test_options_of_the_dump_are_followed(place, again, more):
    status, out = again(*run_tiny(*more))
    assert status == DONE, out
    assert "EQUAL  " in out
    assert "changed" not in out


def test_a_padded_batch_is_repeated(place, again):
    make_dump(place / "d", batch=True)
    assert again()[0] == DONE


def test_given_tokens_are_given_again(place, cli, again):
    assert cli(*run_tiny("--dtype", "bfloat16"))[0] == DONE
    (place / "d").rename(place / "golden")
    status, out = again("run", "tiny", "--follow", "golden", "--dump", "d")
    assert status == DONE, out


def test_bare_forwards_are_repeated(place, again, tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(place / "tiny")
    with register_hook(model, DumpConfig(place / "d")):
        model(torch.tensor([[1, 2, 3]]))
        with torch.no_grad():
            model(input_ids=torch.tensor([[4, 5]]), attention_mask=torch.tensor([[1, 1]]))
    status, out = again()
    assert status == DONE, out
    assert "run 1: " in out


def test_threads_are_those_of_the_dump_and_are_put_back(place, again):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        again(*run_tiny())
    finally:
        torch.set_num_threads(threads)
    status, out = again()
    assert status == DONE, out
    assert "threads" not in out
    assert torch.get_num_threads() == threads


# --- what is not as it was ------------------------------------------------------------------------


def test_a_regime_of_another_machine_is_named(place, cli, again):
    assert cli(*run_tiny())[0] == DONE

    def move(facts):
        facts["regime"] |= {"cpu_capability": "AVX9", "interop_threads": 1234}

    edit(place / RUN, move)
    status, out = again()
    assert status == DONE  # the bits are the same all the same
    assert "run 0: changed: cpu_capability: AVX9 then, " in out
    assert "run 0: changed: interop_threads: 1234 then, " in out


def test_another_release_is_named(place, cli, again):
    assert cli(*run_tiny())[0] == DONE
    manifest = json.loads((place / "d/manifest.json").read_text("utf-8"))
    manifest["versions"]["torch"] = "1.0"
    (place / "d/manifest.json").write_text(json.dumps(manifest))
    assert f"changed: versions.torch: 1.0 then, {torch.__version__} now" in again()[1]


def test_a_changed_weight_is_named_and_where_it_shows_first(place, cli, again, tiny_llama):
    assert cli(*run_tiny("--token-range", "all"))[0] == DONE
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1
    save_model(model, place / "tiny")
    status, out = again()
    assert status == FAILED
    assert "DIFFERS  run again, the model does not give the same bits" in out
    assert "changed: weights 'model.layers.1.mlp.up_proj.weight': float32 [96, 64] " in out
    assert "run 0: first difference: model.layers.1.mlp.up_proj output, forward 0: its bytes" in out


def test_weights_of_another_dtype_are_named(place, cli, again, tiny_llama):
    assert cli(*run_tiny())[0] == DONE
    save_model(tiny_llama().bfloat16(), place / "tiny")
    status, out = again()
    assert status == FAILED
    assert "changed: weights 'lm_head.weight' and " in out


def test_a_dtype_that_the_dump_does_not_have_is_named(place, cli, again):
    """The manifest claims another dtype: the model is loaded so, and no record agrees."""
    assert cli(*run_tiny())[0] == DONE
    manifest = json.loads((place / "d/manifest.json").read_text("utf-8"))
    manifest["identity"]["dtype"] = "torch.bfloat16"
    (place / "d/manifest.json").write_text(json.dumps(manifest))
    status, out = again()
    assert status == FAILED
    assert " more: float32 [128, 64] " in out
    assert "dtype 'float32' then, 'bfloat16' now" in out


def test_another_configuration_is_named(place, cli, again):
    assert cli(*run_tiny())[0] == DONE
    config = json.loads((place / "tiny/config.json").read_text("utf-8"))
    config["rms_norm_eps"] = 0.5
    (place / "tiny/config.json").write_text(json.dumps(config))
    status, out = again()
    assert status == FAILED
    assert "changed: config.rms_norm_eps: 1e-06 then, 0.5 now" in out


def test_another_prompt_is_the_first_difference(place, cli, again):
    assert cli(*run_tiny())[0] == DONE
    edit(place / RUN, lambda facts: facts["prompt"].update(input_ids=[[5, 6, 7]]))
    status, out = again()
    assert status == FAILED
    assert "run 0: first difference: root input.input_ids, forward 0: its bytes are not the" in out


def test_other_generation_options_show_in_the_tokens(place, cli, again):
    assert cli(*run_tiny())[0] == DONE
    edit(place / RUN, lambda facts: facts["generation_config"].update(max_new_tokens=3))
    status, out = again()
    assert status == FAILED
    assert "run 0: other tokens were generated" in out


def test_statistics_that_are_not_those_of_the_bytes_are_named(place, cli, again):
    """The hash of the table agrees, as if a release had computed them wrong."""
    assert cli(*run_tiny("--statistics", "statistics"))[0] == DONE
    file = place / "d/runs/000000/rank-0/index.parquet"
    table = opened(place / "d").index(0)
    means = table.column("mean").to_pylist()
    means[5] += 1e-3
    table = table.set_column(table.schema.get_field_index("mean"), "mean", pa.array(means))
    write_parquet(file, table)
    edit(place / RUN, lambda facts: facts["tables"].update({INDEX: file_digest(file)}))
    status, out = again()
    assert status == FAILED
    assert "run 0: first difference: " in out
    assert f": the same bytes, and other statistics: mean {means[5]} then, " in out


# --- what cannot be repeated ----------------------------------------------------------------------


def test_sampling_without_a_seed_could_not_be_repeated(place, again):
    status, out = again(*run_tiny("--do-sample"))
    assert status == IMPOSSIBLE
    assert "NOT REPEATED  not all runs could be repeated" in out
    assert "run 0: not repeated: it drew its tokens at random without a seed" in out


def test_a_model_that_is_gone_could_not_be_run(place, cli):
    assert cli(*run_tiny())[0] == DONE
    shutil.move(place / "tiny", place / "moved")
    status, _, err = cli("verify", "d", "--rerun")
    assert status == IMPOSSIBLE
    assert "Cannot load 'tiny': no folder here has that name" in err
    assert "--model says where the model is now" in err
    assert cli("verify", "d", "--rerun", "--model", "moved")[0] == DONE


def test_a_run_cut_off_is_not_repeated(place, cli, again):
    assert cli(*run_tiny())[0] == DONE
    (place / RUN).unlink()
    status, out = again()
    assert status == FAILED
    assert "run 0: not repeated: Run 0 of 'd' cannot be followed: it is incomplete" in out


def test_a_damaged_dump_is_not_repeated(place, cli):
    assert cli(*run_tiny())[0] == DONE
    (place / "d/runs/000000/rank-0/shard-00000.safetensors").unlink()
    status, out, _ = cli("verify", "d", "--rerun", "--json")
    assert status == FAILED
    assert "rerun" not in json.loads(out)


def test_a_damaged_dump_says_that_it_is_not_repeated(place, cli):
    assert cli(*run_tiny())[0] == DONE
    (place / "d/runs/000000/rank-0/shard-00000.safetensors").unlink()
    assert "not run again: the dump is damaged\n" in cli("verify", "d", "--rerun")[1]


def test_a_full_disk_is_no_difference(place, cli, monkeypatch):
    """What could not be written again was not shown to differ."""
    assert cli(*run_tiny())[0] == DONE
    fail_at(monkeypatch, "write", os_error())
    status, out, _ = cli("verify", "d", "--rerun")
    assert status == IMPOSSIBLE
    assert "NOT REPEATED  " in out
    assert "run 0: not repeated: DumpWriteError: " in out
    assert "No space left on device" in out


def test_a_model_that_cannot_run_the_prompt_is_told_with_what_changed(place, cli, tiny_llama):
    assert cli(*run_tiny())[0] == DONE
    tiny_llama(vocab_size=16).save_pretrained(place / "smaller")
    status, out, _ = cli("verify", "d", "--rerun", "--model", "smaller")
    assert status == IMPOSSIBLE
    assert "changed: config.vocab_size: 128 then, 16 now" in out
    assert "run 0: not repeated: IndexError: " in out


def test_options_of_the_rerun_need_it(place, cli):
    status, _, err = cli("verify", "d", "--model", "tiny")
    assert status == IMPOSSIBLE
    assert "are about --rerun" in err


def test_json_has_both_verdicts_and_nothing_is_left_behind(place, cli, monkeypatch):
    assert cli(*run_tiny())[0] == DONE
    (place / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place / "temporary"))
    status, out, _ = cli("verify", "d", "--rerun", "--model", DEMO_MODEL, "--json")
    facts = json.loads(out)
    assert status == FAILED
    assert (facts["verdict"], facts["rerun"]["verdict"]) == ("intact", "differs")
    assert facts["rerun"]["runs"][0]["records"]["difference"]
    assert list((place / "temporary").iterdir()) == []
