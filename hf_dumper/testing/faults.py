"""Faults to plant into a model, so that one sees what finding them looks like."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_dumper.errors import ModelError


@contextmanager
def turned_rotary(attention: torch.nn.Module) -> Iterator[None]:
    """Let an attention turn queries and keys the wrong way round while the block runs.

    A sign that is easily mistaken when a rotary embedding is ported. Weights, inputs and
    projections of the module stay right; what it makes of them in its own forward is wrong.

    Raises:
        ModelError: from the forward, when the module is not given `position_embeddings`.
    """
    forward = attention.forward
    before = {name: attention.__dict__[name] for name in ("forward",) if name in attention.__dict__}

    def turned(*args: Any, **kwargs: Any) -> Any:
        if "position_embeddings" not in kwargs:
            msg = f"{type(attention).__name__} takes no position_embeddings that could be turned."
            raise ModelError(msg)
        cos, sin = kwargs["position_embeddings"]
        return forward(*args, **{**kwargs, "position_embeddings": (cos, -sin)})

    attention.__dict__["forward"] = turned
    try:
        yield
    finally:
        del attention.__dict__["forward"]
        attention.__dict__.update(before)
