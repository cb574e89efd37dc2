"""Export a dumped model to ONNX, run it by ONNX Runtime, and compare the logits with the dump.

Run: ``python recipes/onnx_against_torch.py [MODEL] [OUT]``, after ``pip install
"hf_dumper[onnx]"``; the export takes some seconds to minutes. What to look at: per token the
largest difference of the logits and whether both sides choose the same. The graph has no cache: it
is given the prompt and all tokens of the dump at once, so each token's logits are one column.
"""

import sys

import numpy as np
import onnxruntime
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_dumper import DEMO_MODEL, DumpConfig, open_dump, register_hook

PROMPT = "If you modify the Program, you must"


class Logits(torch.nn.Module):
    """The model as a function of token ids [1, length] alone: all logits, no cache."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Wrap a model."""
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return [1, length, vocabulary]."""
        return self.model(input_ids=input_ids, use_cache=False).logits


def export(model: torch.nn.Module, path: str) -> None:
    """Write the model as ONNX, for prompts of any length."""
    ids = torch.ones(1, 8, dtype=torch.int64)
    length = torch.export.Dim("length", min=2, max=256)
    program = torch.onnx.export(
        Logits(model).eval(), (ids,), dynamo=True, dynamic_shapes={"input_ids": {1: length}}
    )
    program.save(path)


def main(model_path: str = DEMO_MODEL, out: str = "onnx") -> None:
    """Dump, export, run, compare."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(
        model_path, dtype="float32", attn_implementation="eager"
    )
    inputs = tokenizer(PROMPT, return_tensors="pt")
    config = DumpConfig(f"{out}/golden", "all", dump_last_logits=True, overwrite=True)
    with register_hook(model, config, tokenizer=tokenizer):
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)

    export(model, f"{out}/model.onnx")
    session = onnxruntime.InferenceSession(f"{out}/model.onnx")
    (logits,) = session.run(None, {"input_ids": ids[:, :-1].numpy()})

    prompt = inputs["input_ids"].shape[1]
    with open_dump(f"{out}/golden") as golden:
        for token in range(ids.shape[1] - prompt):
            ours = golden.load("root", "logits", token)[0].numpy()
            theirs = logits[0, prompt - 1 + token]
            same = "same" if ours.argmax() == theirs.argmax() else "ANOTHER"
            print(f"token {token}: {np.abs(ours - theirs).max():.2e} apart, {same} choice")


if __name__ == "__main__":
    main(*sys.argv[1:])
