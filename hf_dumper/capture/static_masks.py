"""The masks that `generate()` makes for static caches: of four axes, instead of the user's of two.

Written for `create_masks_for_generate` of transformers 5.23: [rows, 1, queries, keys], one or one
per type of layer. A key that no query of its own forward attends to is padding: a token that is
none attends to itself, and padding is attended to by nobody.
"""

from enum import Enum
from typing import Any

import torch

_FULL = "full_attention"


class Generated(Enum):
    """Whether `generate()` made the mask of a forward, and for which part of a sequence."""

    NO = 0
    PROMPT = 1
    DECODE = 2


def is_static_mask(mask: Any, cache: Any) -> bool:
    """Tell whether a mask is one of those: not the user's, and not of two axes."""
    if mask is None or not getattr(cache, "is_compileable", False):
        return False
    return isinstance(mask, dict) or not isinstance(mask, torch.Tensor) or mask.ndim == 4


def unmasked_columns(mask: Any, cache: Any, past: int, cols: int) -> Any:
    """Return a mask of two axes [rows, past + cols], or what cannot be read as it is.

    None means that nothing is masked. Where all layers slide, the later chunks of a prompt do not
    see what came long before, so that their masks are not read.
    """
    slides = any(getattr(cache, "is_sliding", ()))
    if isinstance(mask, dict):
        slides = _FULL not in mask
        mask = mask.get(_FULL, next(iter(mask.values()), None))
    is_wide = isinstance(mask, torch.Tensor) and mask.ndim == 4 and mask.shape[3] >= past + cols
    if mask is None or not is_wide or (slides and past):
        return mask
    attended = mask if mask.dtype == torch.bool else mask == 0
    return attended[:, 0, :, : past + cols].any(dim=1)
