"""Forwards that a generation runs beside its sequence.

`guidance_scale` makes a logits processor that calls the model again, without the prompt; a user's
own processor or stopping criterion may do so, too. The caller is what tells such a forward: how it
is called, and how many a token has, does not.
"""

import inspect
import sys
from typing import Final

from transformers import GenerationMixin, LogitsProcessorList, StoppingCriteriaList

_BESIDE: Final = frozenset(
    (LogitsProcessorList.__call__.__code__, StoppingCriteriaList.__call__.__code__)
)
_GENERATE: Final = inspect.unwrap(GenerationMixin.generate).__code__


def runs_aside() -> bool:
    """Tell whether the code in progress was called by a processor or criterion of `generate()`."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not _GENERATE:
        if frame.f_code in _BESIDE:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
