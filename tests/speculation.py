"""What speculative decoding does, seen without hf_dumper, and drafters for the tests of it."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerFast, StoppingCriteria

from hf_dumper import DEMO_MODEL


class Iteration(NamedTuple):
    """One turn of the loop: length of the ids before it, drafts, length of the ids after it."""

    before: int
    drafted: int
    after: int


class Spy(StoppingCriteria):
    """Watches `generate()` from inside transformers: its candidate generator and its criteria."""

    def __init__(self, model, monkeypatch):
        self.iterations, self.drafts = [], []
        make = type(model)._get_candidate_generator

        def watched(*args, **kwargs):
            generator = make(*args, **kwargs)
            get = generator.get_candidates

            def candidates(ids, **more):
                found = get(ids, **more)
                self.drafts.append((ids.shape[1], found[0].shape[1] - ids.shape[1]))
                return found

            generator.get_candidates = candidates
            return generator

        monkeypatch.setattr(type(model), "_get_candidate_generator", watched)

    def __call__(self, input_ids, scores, **kwargs):
        before, drafted = self.drafts[-1]
        self.iterations.append(Iteration(before, drafted, input_ids.shape[1]))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def constant(assistant, count=4):
    """Let an assistant always draft so many tokens, however sure it is."""
    config = assistant.generation_config
    config.num_assistant_tokens = count
    config.num_assistant_tokens_schedule = "constant"
    config.assistant_confidence_threshold = 0.0
    return assistant


def perturb(model, scale, seed=9):
    """Add noise to the weights of a model, in proportion to their size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.add_(scale * parameter.std() * noise)
    return model


def other_tokenizer(folder):
    """Return the demo tokenizer with other ids and one token more, and the new id of each old."""
    table = json.loads((Path(DEMO_MODEL) / "tokenizer.json").read_text())
    special = {entry["id"] for entry in table["added_tokens"]}
    vocabulary = table["model"]["vocab"]
    ordinary = sorted(set(vocabulary.values()) - special)
    new = {i: i for i in special} | dict(zip(ordinary, ordinary[1:] + ordinary[:1], strict=True))
    table["model"]["vocab"] = {word: new[i] for word, i in vocabulary.items()}
    table["model"]["vocab"]["~unused~"] = len(vocabulary)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(table))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_file=str(file), **tokens), new


def renumber(model, new):
    """Give a model the ids of another tokenizer; it then does as before, but for one more token."""
    model.resize_token_embeddings(len(new) + 1, mean_resizing=False)
    order = torch.tensor([new[i] for i in range(len(new))])
    with torch.no_grad():
        for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
            weight = module.weight.clone()
            weight[order] = module.weight[: len(new)]
            module.weight.copy_(weight)
    return model
