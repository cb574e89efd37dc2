"""The demo model is what its recipe makes, small enough to ship, and writes real text."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "train_demo_model.py"
CORPUS = ROOT / "recipes" / "demo_corpus"
ASSETS = ROOT / "hf_dumper" / "assets"
MODEL = ASSETS / "demo_model"

STEPS = 30
TOLERANCE = 1e-3
"""How far a loss of the first 30 steps may be from the recorded one.

Measured over 30 steps on one CPU: one, two and four threads give the same bits; narrower vector
units (AVX2, or none) move a loss by at most 1e-6. Equal bits are still not asked for: another CPU
or release may add in another order. The recorded losses are rounded to 5e-5. A learning rate one
percent higher moves a loss by 5e-3, so 1e-3 leaves room for the former and still sees the latter.
"""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """Import the recipe by its path; recipes are no package."""
    spec = importlib.util.spec_from_file_location("train_demo_model", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """Read the record that the shipped training left behind."""
    loaded: dict[str, Any] = json.loads((MODEL / "training.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Train on one thread, as the shipped model was, and leave torch as it was before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Load the shipped tokenizer."""
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    """Load the shipped model in float32."""
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def distance(losses: list[float], record: dict[str, Any]) -> float:
    """Give the largest difference between losses and the recorded ones."""
    curve: dict[str, float] = record["losses"]
    return max(abs(loss - curve[str(step)]) for step, loss in enumerate(losses))


@pytest.mark.usefixtures("one_thread")
def test_recipe_repeats_the_recorded_training(
    recipe: ModuleType, record: dict[str, Any], tokenizer: Any
) -> None:
    """Thirty steps from scratch give the recorded curve and the shipped tokenizer."""
    retrained, _, losses = recipe.train(
        CORPUS, record["seed"], record["steps"], record["rate"], stop=STEPS
    )
    assert len(losses) == STEPS
    assert distance(losses, record) < TOLERANCE
    assert losses[-1] < losses[0] - 0.5
    assert retrained.get_vocab() == tokenizer.get_vocab()
    assert retrained.chat_template == tokenizer.chat_template


@pytest.mark.usefixtures("one_thread")
def test_another_learning_rate_is_noticed(recipe: ModuleType, record: dict[str, Any]) -> None:
    """A learning rate five percent higher leaves the recorded curve: the comparison can fail."""
    _, _, losses = recipe.train(
        CORPUS, record["seed"], record["steps"], 1.05 * record["rate"], stop=STEPS
    )
    assert distance(losses, record) > 5 * TOLERANCE


def test_record_tells_a_finished_training(recipe: ModuleType, record: dict[str, Any]) -> None:
    """The record has the recipe's own settings, the whole curve and a low final loss."""
    assert {name: record[name] for name in recipe.FIXED} == recipe.FIXED
    assert record["windows"] == list(recipe.WINDOWS)
    assert record["final_loss"] < 0.3
    expected = {i for i in range(record["steps"]) if i < 60 or i % 50 == 0}
    assert {int(step) for step in record["losses"]} == expected


def test_shipped_folder_is_small_and_in_bfloat16(model: Any) -> None:
    """All files together take at most 2 MB; the weights are stored in bfloat16."""
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 2_000_000
    weights = MODEL / "model.safetensors"
    assert weights.stat().st_size <= 1_900_000
    size = int.from_bytes(weights.read_bytes()[:8], "little")
    header = json.loads(weights.read_bytes()[8 : 8 + size])
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"BF16"}
    assert 860_000 < model.num_parameters() < 1_000_000


@pytest.mark.parametrize("row", read_rows(ASSETS / "demo_prompts.jsonl"), ids=lambda row: row["id"])
def test_greedy_text_is_licence_prose(row: dict[str, str], model: Any, tokenizer: Any) -> None:
    """Forty greedy tokens are made of words of the corpus, varied, and never loop."""
    inputs = tokenizer(row["prompt"], return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    output = model.generate(**inputs, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :]
    words = re.findall(r"[A-Za-z]+", tokenizer.decode(output, skip_special_tokens=True))
    corpus = " ".join(path.read_text(encoding="utf-8") for path in CORPUS.glob("*.txt"))
    known = set(re.findall(r"[A-Za-z]+", corpus))
    assert len(words) >= 15
    assert all(word in known for word in words[:-1])
    assert len({*zip(words, words[1:], words[2:], strict=False)}) >= 0.8 * (len(words) - 2)


@pytest.mark.parametrize("row", read_rows(ASSETS / "demo_chat.jsonl"), ids=lambda row: row["id"])
def test_chat_ends_by_itself(row: dict[str, Any], model: Any, tokenizer: Any) -> None:
    """The assistant's turn ends with the end token, well before the length limit."""
    inputs = tokenizer.apply_chat_template(
        row["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    start = inputs["input_ids"].shape[1]
    output = model.generate(**inputs, max_new_tokens=200)[0, start:].tolist()
    assert output[-1] == tokenizer.eos_token_id
    assert 20 < len(output) < 200
    assert not set(output[:-1]) & set(tokenizer.all_special_ids)
    assert not set(output) & set(tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"]))


@pytest.mark.parametrize("text", ["two  spaces , and\n\ttabs ", "naïve 你好 🦙 \u0000\u200b", " x"])
def test_tokenizer_gives_any_text_back(text: str, tokenizer: Any) -> None:
    """Byte-level tokens lose nothing, whatever the text."""
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.padding_side == "left"
