"""Every recipe runs on the embedded model, twice in the same place, and shows what it promises."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from hf_dumper import DEMO_MODEL, open_dump

RECIPES = Path(__file__).parents[2] / "recipes"
LONG = ("train_demo_model",)
"""Has a test of its own."""


@pytest.fixture
def recipe(tmp_path, monkeypatch, capfd):
    """Return a function that runs a recipe in a folder of its own and returns its lines."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
        return capfd.readouterr().out.splitlines()

    return run


def names():
    return sorted(path.stem for path in RECIPES.glob("*.py"))


def test_the_page_lists_every_recipe_with_its_command():
    listed = re.findall(r"\| `python recipes/(\w+)\.py.*` \|$", _page(), re.MULTILINE)
    assert sorted(listed) == names()


def test_this_file_runs_every_recipe():
    run = set(re.findall(r'recipe\("(\w+)"', Path(__file__).read_text("utf-8")))
    assert run | set(LONG) == set(names())


def _page():
    return (RECIPES / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", names())
def test_a_recipe_is_one_short_file_that_says_how_to_run_it(name):
    text = (RECIPES / f"{name}.py").read_text("utf-8")
    assert len(text.splitlines()) <= 120
    assert f"``python recipes/{name}.py" in text
    assert "What to look at:" in text


def test_a_golden_dump_of_a_dataset_has_a_run_per_prompt(recipe):
    lines = recipe("golden_dump_of_a_dataset")
    assert lines[0].startswith("<dump 'golden': LlamaForCausalLM, 4 runs, 32 tokens, 4640 records")
    assert [line.partition(":")[0] for line in lines[1:]] == ["run 0", "run 1", "run 2", "run 3"]


def test_a_golden_dump_takes_prompts_of_ones_own(recipe, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "You may copy"}\n')
    lines = recipe(
        "golden_dump_of_a_dataset", DEMO_MODEL, "p.jsonl", "o", "--tokens", 2, "--last-logits"
    )
    assert lines[1:] == ["run 0: 2 tokens from 'You may copy'"]
    with open_dump(tmp_path / "o") as dump:
        assert set(dump.index(0)["slot"].to_pylist()) == {"logits", "scores", "token_ids"}


def test_last_logits_are_all_that_is_kept(recipe, tmp_path):
    first, second = recipe("last_logits_only"), recipe("last_logits_only")
    assert first == second
    assert len(first) == 9
    with open_dump(tmp_path / "logits") as dump:
        assert set(dump.index(0)["slot"].to_pylist()) == {"logits", "scores", "token_ids"}
        likeliest = dump.load("root", "logits", 1).double().softmax(-1).max().item()
    assert first[2].startswith(f"token 1: {likeliest:.3f} ")


def test_bf16_passes_against_fp32_and_its_farthest_modules_are_listed(recipe):
    recipe("bf16_against_fp32")
    verdict, *farthest = recipe("bf16_against_fp32")
    assert verdict.strip() == "pass"
    errors = [float(line.rpartition(" ")[2]) for line in farthest]
    assert errors == sorted(errors, reverse=True)
    assert 0.001 < errors[0] < 0.04


def test_eager_passes_against_sdpa_layer_by_layer(recipe):
    recipe("eager_against_sdpa")
    verdict, *layers = recipe("eager_against_sdpa")
    assert verdict == "pass"
    assert len(layers) == 4
    errors = [float(line.rpartition(" ")[2]) for line in layers]
    assert 0 < max(errors) < 1e-5


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_without_an_accelerator_it_says_so(recipe, capfd, tmp_path):
    with pytest.raises(SystemExit) as ended:
        recipe("cpu_against_accelerator")
    assert ended.value.code == 2
    assert capfd.readouterr().err == "There is no GPU or NPU here that this torch can use.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_an_accelerator_passes_against_the_cpu(recipe):
    assert recipe("cpu_against_accelerator")[0] in ("pass", "identical")


def test_an_offloaded_model_gives_the_identical_dump(recipe):
    recipe("offload_to_cpu_and_disk")
    assert recipe("offload_to_cpu_and_disk") == [
        "18 of 38 parameters are not on the device",
        "identical",
    ]


def test_the_first_layers_are_those_of_the_whole_model(recipe):
    assert recipe("first_layers_only") == [
        "identical, 74 tensors compared",
        "model.layers.0: identical",
        "model.layers.1: identical",
    ]
    assert recipe("first_layers_only", DEMO_MODEL, "1")[1:] == ["model.layers.0: identical"]


def test_the_one_weight_that_differs_is_listed(recipe):
    recipe("weights_of_two_checkpoints")
    assert recipe("weights_of_two_checkpoints") == [
        "0.01  model.layers.2.mlp.down_proj.weight",
        "1 weights differ",
    ]


def test_a_checkpoint_has_no_weights_that_differ_from_its_own(recipe):
    assert recipe("weights_of_two_checkpoints", DEMO_MODEL, DEMO_MODEL) == ["0 weights differ"]


def test_statistics_become_a_picture_of_every_layer(recipe, tmp_path):
    recipe("statistics_as_plots")
    assert recipe("statistics_as_plots") == ["4 layers over 16 tokens: statistics/statistics.png"]
    picture = (tmp_path / "statistics" / "statistics.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    from matplotlib import pyplot

    pixels = pyplot.imread(tmp_path / "statistics" / "statistics.png")
    assert len({tuple(pixel) for pixel in pixels[::4, ::4].reshape(-1, 4).tolist()}) > 10


def test_a_script_for_msit_leaves_the_files_of_msit(recipe):
    recipe("from_msit_llm")
    lines = recipe("from_msit_llm")
    assert sum("/0/root.model.layers.0.mlp/output.pth [1, 8, 128]" in line for line in lines) == 2
    assert lines[-1] == "[1, 8, 128] by open_dump"


@pytest.mark.filterwarnings("ignore")  # of onnx and torch's exporter about each other
def test_onnx_runtime_agrees_with_the_dump_at_every_token(recipe):
    lines = [line for line in recipe("onnx_against_torch") if line.startswith("token ")]
    assert len(lines) == 8
    for line in lines:
        apart = float(line.split()[2])
        assert 0 <= apart < 1e-4
        assert line.endswith("same choice")
