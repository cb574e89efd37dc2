"""What goes wrong on purpose, and what must be true of a model and a dump afterwards."""

import errno
import os

import torch
from transformers import StoppingCriteria

from hf_dumper import open_dump
from hf_dumper.store import DirectorySink
from hf_dumper.store.run_writer import RunWriter

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))


class Counter(StoppingCriteria):
    """Counts the tokens that a generation takes."""

    def __init__(self):
        self.tokens = 0

    def __call__(self, input_ids, scores, **kwargs):
        self.tokens += 1
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def generate(model, tokens=4, counter=None):
    criteria = [] if counter is None else [counter]
    return model.generate(IDS, max_new_tokens=tokens, stopping_criteria=criteria)


def os_error(code=errno.ENOSPC):
    return OSError(code, os.strerror(code))


def fail_at(monkeypatch, name, error, forward=0):
    """Let a method of the sink raise; `write` from the batches of a forward on."""
    owner = RunWriter if name == "commit" else DirectorySink
    original = getattr(owner, name)

    def broken(self, value):
        if name != "write" or value.tick.forward >= forward:
            raise error
        return original(self, value)

    monkeypatch.setattr(owner, name, broken)


def is_plain(model, attributes):
    """Tell whether nothing of ours is on a model but the closed session."""
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    return not hooks and set(model.__dict__) - attributes <= {"dump"}


def readable_forwards(path, run=0):
    """Read every tensor of a run; return the numbers of the forwards that are there."""
    with open_dump(path) as reader:
        for key in reader.keys(run=run, status="stored"):
            assert reader.load_key(key) is not None
        return sorted(set(reader.index(run)["forward"].to_pylist()))


def facts(path, run=0):
    with open_dump(path) as reader:
        return reader.run_info(run)
