"""Prompts through a dumped model, one run each."""

from typing import Any

import pytest
import torch

from hf_dumper.config import DumpConfig
from hf_dumper.errors import PromptError
from hf_dumper.model import register_hook
from hf_dumper.prompts import Prompt
from hf_dumper.runner import dump_prompts
from hf_dumper.store import open_dump

PROMPTS = [Prompt("a", text="one"), Prompt("b", text="three")]


class Codes:
    """A tokenizer whose ids are the codes of characters."""

    def __call__(self, text, return_tensors):
        ids = torch.tensor([[ord(c) for c in text]], dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def decode(self, ids):
        return "".join(map(chr, ids.tolist()))

    def batch_decode(self, rows):
        return ["".join(map(chr, row)) for row in rows]

    def save_pretrained(self, save_directory):
        pass


@pytest.fixture
def dumped(tiny_llama, tmp_path):
    model = tiny_llama()
    with register_hook(model, DumpConfig(tmp_path / "d", "all"), tokenizer=Codes()):
        yield model


def test_every_prompt_is_a_run_with_its_answer(dumped):
    results = dump_prompts(dumped, Codes(), PROMPTS, max_new_tokens=3)
    assert [(r.run, r.prompt.id, r.tokens) for r in results] == [(0, "a", 3), (1, "b", 3)]
    reader = open_dump(dumped.dump.path)
    for result in results:
        ids = [reader.load("root", "token_ids", t, run=result.run).item() for t in range(3)]
        assert result.text == "".join(chr(int(i)) for i in ids)
        assert result.seconds > 0


def test_progress_is_told_token_by_token(dumped):
    seen: list[tuple[int, int]] = []
    dump_prompts(
        dumped, Codes(), PROMPTS, max_new_tokens=2, on_progress=lambda i, n: seen.append((i, n))
    )
    assert seen == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_generation_options_are_passed_on(dumped):
    torch.manual_seed(0)
    sampled: dict[str, Any] = {"do_sample": True, "temperature": 5.0}
    results = dump_prompts(dumped, Codes(), PROMPTS * 2, max_new_tokens=4, **sampled)
    assert results[0].text != results[2].text


def test_a_failing_prompt_leaves_the_runs_before_it(dumped):
    with pytest.raises(PromptError, match="no tokens"):
        dump_prompts(dumped, Codes(), [*PROMPTS, Prompt("c", text="")], max_new_tokens=2)
    assert open_dump(dumped.dump.path).runs() == (0, 1)


def test_a_model_without_a_head_runs_forwards(tiny_llama, tmp_path):
    model = tiny_llama().model
    with register_hook(model, DumpConfig(tmp_path / "d")):
        results = dump_prompts(model, Codes(), PROMPTS, max_new_tokens=3)
    assert [(r.run, r.text, r.tokens) for r in results] == [(0, None, 0), (1, None, 0)]
