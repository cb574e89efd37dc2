"""Which axis of a tensor is the batch row and which the token position.

The index stores this as one word per dimension, joined by commas: `row`, `pos`, `row*pos` for rows
and columns flattened into one axis, `-` for anything else. The empty string means that the shape
does not tell; such a tensor is compared whole. A `pos` axis shorter than the forward has columns
covers its last columns (`logits_to_keep`).
"""

from functools import lru_cache

ROW, POS, ROW_POS, OTHER = "row", "pos", "row*pos", "-"


@lru_cache(maxsize=4096)
def infer_axes(shape: tuple[int, ...], rows: int, cols: int, keep: int, cached: bool) -> str:
    """Return the axes of a tensor seen in a forward of `rows` x `cols` tokens, or "".

    `keep` is the forward's positive `logits_to_keep`, else 0; `cached` tells whether
    a cache holds more columns.
    Batch first is assumed, as everywhere in transformers: a leading axis of length `rows` is the
    row. Columns before rows, as in models of before 2024 with code of their own, are seen where
    the two lengths differ and there are channels.
    """
    n = len(shape)
    if not n or not rows:
        return ""
    if cols and rows != 1 and shape[0] == rows * cols and n <= 2:
        return _join(ROW_POS, n)
    if shape[0] == rows:
        return _after_row(shape, cols, keep, cached)
    if shape[0] == 1 and n >= 2 and cols and shape[1] == cols:  # positions shared by all rows
        return _join(f"{OTHER},{POS}", n)
    if cols and n >= 3 and shape[1] == rows:
        return _before_row(shape, cols)
    if cols and shape[0] == cols and (n == 1 or (rows == 1 and n == 2)):
        return POS if n == 1 else _join(ROW_POS, n)
    return ""


def _before_row(shape: tuple[int, ...], cols: int) -> str:
    n, leads, follows = len(shape), shape[0] == cols, shape[2] == cols
    if follows and (n == 3 or not leads):  # one for each of several streams, or position ids
        return _join(f"{OTHER},{ROW},{POS}", n)
    return _join(f"{POS},{ROW}", n) if leads and not follows else ""


def _after_row(shape: tuple[int, ...], cols: int, keep: int, cached: bool) -> str:
    n = len(shape)
    if n == 1 or not cols:
        return _join(ROW, n)
    if n == 4 and shape[2] == cols:  # [batch, heads, query, key or channel], the common layout
        if shape[1] == cols > 1:  # or [batch, query, heads, channel]
            return ""
        keys = POS if shape[3] == cols and not cached else OTHER
        return f"{ROW},{OTHER},{POS},{keys}"
    if shape[1] == cols or (keep and shape[1] == keep and n == 3):
        return _join(f"{ROW},{POS}", n)
    return _join(ROW, n)


def _join(known: str, n: int) -> str:
    return ",".join([known] + [OTHER] * (n - known.count(",") - 1))
