"""Warnings that point at the user's line rather than into the machinery between it and us."""

import contextlib
import sys
import warnings
from pathlib import Path

import torch

_BETWEEN = (
    str(Path(__file__).parents[1]),
    str(Path(torch.__file__).parent),
    contextlib.__file__,
)


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the innermost line that is neither ours, nor torch's, nor contextlib's."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
