"""The user's own tensors: which module they belong to, and which number they have."""

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from hf_dumper.capture.naming import named_modules
from hf_dumper.core.types import ROOT
from hf_dumper.errors import CaptureError

if TYPE_CHECKING:
    from types import FrameType


class SavePlaces:
    """Says where a tensor that is saved in the middle of a forward belongs."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Know the modules of a model by their names."""
        named = named_modules(model)
        self._sources = {id(m): (name or ROOT, type(m).__name__) for name, m in named}
        self._root = (ROOT, type(model).__name__)
        self._forward = -1
        self._saved: Counter[tuple[str, str]] = Counter()

    def place(self, name: str, forward: int) -> tuple[tuple[str, str], int]:
        """Return name and class of the innermost module in progress, and the number of the save.

        The root stands for code outside of any module. Saves of one name at one module are
        numbered within a forward.
        """
        if forward != self._forward:
            self._forward = forward
            self._saved.clear()
        source = self._innermost()
        number = self._saved[source[0], name]
        self._saved[source[0], name] += 1
        return source, number

    def _innermost(self) -> tuple[str, str]:
        # The stack knows, whether or not a module is tapped, and also after an exception.
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_name == "_call_impl":
                source = self._sources.get(id(frame.f_locals.get("self")))
                if source is not None:
                    return source
            frame = frame.f_back
        return self._root


def check_saved(name: Any, tensor: Any) -> None:
    """Make sure that this can be saved.

    Raises:
        CaptureError: the name is none, or the value is no tensor.
    """
    if not isinstance(name, str) or not name or ":" in name or not name.isprintable():
        msg = f"save() needs a name of printable characters other than ':', not {name!r}."
        raise CaptureError(msg)
    if not isinstance(tensor, torch.Tensor):
        msg = f"save({name!r}, ...) takes a tensor, not {type(tensor).__name__}."
        raise CaptureError(msg)
