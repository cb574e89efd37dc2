"""Which columns of a prompt are padding, read from a mask [rows, 1, query, key].

Such a mask says for each query which keys it sees, as truth values or as what is added to scores.
"""

from typing import Any, Final

import torch

from hf_dumper.capture.storable import PLAIN

_HIDES: Final = -1e4
"""What is added to a score so that its key is hidden: this, or still less."""


def real_columns(mask: Any, columns: int) -> torch.Tensor | None:
    """Return which columns are no padding, int64 [rows, columns]; None where that is not known.

    Models differ in whether True is what a query sees, or what is hidden from it. In a causal mask
    the last query sees its own key, and the first one does not see the last key: a row in which
    these two are equal tells nothing, as one with padding at its end, and where rows contradict
    each other, or none tells anything, the answer is None. A column is real when its query sees it;
    queries of padding may see everything, so that their scores are no row of NaN.
    """
    if type(mask) not in PLAIN or mask.is_meta or mask.shape[1:] != (1, columns, columns):
        return None
    if columns == 1:
        return torch.ones(len(mask), 1, dtype=torch.int64)
    own = _truths(mask[:, 0].diagonal(dim1=1, dim2=2))
    to_last = _truths(mask[:, 0, :, -1])
    told = own[:, -1] != to_last[:, 0]
    if not told.any():
        return None
    seen = own[told][0, -1]
    if (own[told][:, -1] != seen).any() or (own[:, -1] != seen).any():
        return None
    everything = to_last == seen
    everything[:, -1] = False
    return ((own == seen) & ~everything).long()


def _truths(values: torch.Tensor) -> torch.Tensor:
    """Return truth values on the CPU; of numbers, whether they hide nothing."""
    values = values.detach().cpu()
    if values.dtype == torch.bool:
        return values
    return values > _HIDES
