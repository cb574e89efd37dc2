"""Which axis is row and which is position, for shapes that models really produce."""

import pytest

from hf_dumper.core.axes import infer_axes

# shape, rows, cols, keep, past -> axes
CASES = [
    ((2, 7), 2, 7, 0, 0, "row,pos"),  # ids
    ((2, 7, 64), 2, 7, 0, 0, "row,pos,-"),  # hidden state
    ((2, 1, 64), 2, 1, 0, 7, "row,pos,-"),  # one decode step
    ((2, 7, 4, 16), 2, 7, 0, 0, "row,pos,-,-"),  # [batch, tokens, heads, channels]
    ((2, 4, 7, 16), 2, 7, 0, 0, "row,-,pos,-"),  # [batch, heads, tokens, channels]
    ((2, 4, 7, 7), 2, 7, 0, 0, "row,-,pos,pos"),  # attention weights
    ((2, 1, 7, 7), 2, 7, 0, 0, "row,-,pos,pos"),  # a causal mask
    ((2, 4, 3, 10), 2, 3, 0, 7, "row,-,pos,-"),  # weights over a cache and a chunk
    ((2, 4, 3, 3), 2, 3, 0, 7, "row,-,pos,-"),  # a chunk of 3 over a cache: keys are not positions
    ((14, 64), 2, 7, 0, 0, "row*pos,-"),  # flattened, as in experts
    ((14,), 2, 7, 0, 0, "row*pos"),
    ((14, 8, 4), 2, 7, 0, 0, ""),  # three axes: not the flattened layout
    ((2,), 2, 7, 0, 0, "row"),
    ((2, 64), 2, 7, 0, 0, "row,-"),  # pooled
    ((2, 1, 128), 2, 7, 1, 0, "row,pos,-"),  # logits under logits_to_keep
    ((2, 1, 128), 2, 7, 0, 0, "row,-,-"),
    ((1, 7), 2, 7, 0, 0, "-,pos"),  # position ids shared by the rows
    ((1, 7, 16), 2, 7, 0, 0, "-,pos,-"),  # rotary tables
    ((3, 2, 7), 2, 7, 0, 0, "-,row,pos"),  # position ids of three axes, for images
    ((4, 2, 7, 64), 2, 7, 0, 0, "-,row,pos,-"),  # hidden states of four streams
    ((3, 1, 7), 1, 7, 0, 0, "-,row,pos"),
    ((3, 2, 1), 2, 1, 0, 7, "-,row,pos"),
    ((7,), 2, 7, 0, 0, "pos"),  # cache positions
    ((7, 64), 1, 7, 0, 0, "row*pos,-"),  # flattened, one row
    ((7, 64), 2, 7, 0, 0, ""),
    ((), 2, 7, 0, 0, ""),
    ((2, 3), 0, 0, 0, 0, ""),  # before the first forward
    ((2, 3, 8), 2, 0, 0, 0, "row,-,-"),  # a model without tokens
    ((5, 3), 2, 0, 0, 0, ""),
    ((1, 7, 64), 1, 7, 0, 0, "row,pos,-"),
    ((1, 1, 64), 1, 1, 0, 3, "row,pos,-"),
    ((0, 7), 0, 7, 0, 0, ""),
    ((7, 2, 64), 2, 7, 0, 0, "pos,row,-"),  # columns before rows
    ((7, 1, 4, 16), 1, 7, 0, 0, "pos,row,-,-"),
    ((1, 2, 64), 2, 1, 0, 7, "pos,row,-"),  # one decode step of them
    ((7, 2), 2, 7, 0, 0, ""),  # without channels it may be anything
]
AMBIGUOUS = [
    ((2, 2, 64), 2, 2, 0, 0, "row,pos,-"),  # rows equal columns: batch first is assumed
    ((1, 64), 1, 1, 0, 0, "row,-"),  # one row, one token, pooled or flattened: row is true of both
    ((2, 7, 7, 16), 2, 7, 0, 0, ""),  # heads equal tokens: the first that fits
    ((4, 64), 2, 2, 0, 0, "row*pos,-"),
]


@pytest.mark.parametrize(("shape", "rows", "cols", "keep", "past", "axes"), CASES)
def test_a_shape_has_these_axes(shape, rows, cols, keep, past, axes):
    assert infer_axes(shape, rows, cols, keep, past) == axes


@pytest.mark.parametrize(("shape", "rows", "cols", "keep", "past", "axes"), AMBIGUOUS)
def test_an_ambiguous_shape_is_read_batch_first(shape, rows, cols, keep, past, axes):
    assert infer_axes(shape, rows, cols, keep, past) == axes


@pytest.mark.parametrize(("shape", "rows", "cols", "keep", "past", "axes"), CASES + AMBIGUOUS)
def test_known_axes_have_a_word_for_every_dimension(shape, rows, cols, keep, past, axes):
    found = infer_axes(shape, rows, cols, keep, past)
    assert not found or len(found.split(",")) == len(shape)
