"""A witness that shares no code with the package: plain torch hooks, every tensor cloned.

Names of inputs and outputs are those of the interface, written down a second time.
"""

import dataclasses
from collections import Counter

import torch


class Witness:
    """Clones whatever goes in and out of every module, by hooks of its own.

    Forwards are those of the module named `root`, or of the part that generates in its place.
    """

    def __init__(self, model, root="root"):
        self.root = root
        self.seen, self.forward, self.calls, self.open = {}, -1, Counter(), []
        self.handles = []
        for name, module in model.named_modules():
            for hook in self.hooks(name or "root"):
                self.handles.append(hook(module))

    def hooks(self, name):
        def before(_module, args, kwargs):
            if name == self.root:
                self.forward += 1
                if self.forward:
                    self.calls.clear()
            call = self.calls[name]
            self.calls[name] += 1
            self.open.append((name, call))
            for i, value in enumerate(args):
                self.keep(name, f"input.{i}", call, value)
            for key, value in kwargs.items():
                self.keep(name, f"input.{key}", call, value)

        def after(_module, _args, _kwargs, output):
            while True:  # calls that raised are still on the stack
                opened, call = self.open.pop()
                if opened == name:
                    break
            self.keep(name, "output", call, output)

        yield lambda module: module.register_forward_pre_hook(before, with_kwargs=True)
        yield lambda module: module.register_forward_hook(after, with_kwargs=True)

    def keep(self, name, slot, call, value):
        if isinstance(value, torch.Tensor):
            self.seen[max(self.forward, 0), name, slot, call] = value.detach().clone()
        elif dataclasses.is_dataclass(value) and not isinstance(value, dict):
            for field in dataclasses.fields(value):
                self.keep(name, f"{slot}.{field.name}", call, getattr(value, field.name))
        elif isinstance(value, dict):
            for key in value:
                self.keep(name, f"{slot}.{key}", call, value[key])
        elif hasattr(value, "_fields"):
            for field in value._fields:
                self.keep(name, f"{slot}.{field}", call, getattr(value, field))
        elif isinstance(value, (tuple, list)):
            for i in range(len(value)):
                self.keep(name, f"{slot}.{i}", call, value[i])

    def leave(self):
        for handle in self.handles:
            handle.remove()


def raw(tensor):
    """Return the bytes of a tensor in row-major order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
