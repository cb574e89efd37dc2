"""What of a prompt is padding, by masks [rows, 1, query, key] of different kinds."""

import pytest
import torch

from hf_dumper.capture.masks import real_columns

LENGTHS = (5, 3, 1)
PADDED = [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1]]


def seen(*, causal=True, side="left", padding_sees_all=False):
    """Return who sees what: bool [rows, 1, 5, 5]."""
    real = torch.tensor(PADDED).bool()
    real = real if side == "left" else real.flip(1)
    mask = torch.ones(5, 5).tril().bool() if causal else torch.ones(5, 5).bool()
    mask = mask & real[:, None, :] & real[:, :, None]
    if padding_sees_all:
        mask |= ~real[:, :, None]
    return mask[:, None]


KINDS = {
    "true is seen": lambda mask: mask,
    "true is hidden": lambda mask: ~mask,
    "added to scores": lambda mask: torch.zeros(mask.shape).masked_fill(~mask, -1e38),
    "added to scores, as little as models do": lambda m: -1e4 * (~m).float(),
    "half precision": lambda mask: torch.zeros(mask.shape).half().masked_fill(~mask, -65504.0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sees_all", [False, True])
def test_padding_on_the_left_is_found(kind, sees_all):
    mask = KINDS[kind](seen(padding_sees_all=sees_all))
    assert real_columns(mask, 5).tolist() == PADDED


def test_a_context_that_sees_itself_is_no_padding():
    hidden = torch.ones(1, 1, 6, 6).triu(1).bool()
    hidden[..., :5] = False  # all but the last column is context
    assert real_columns(hidden, 6).tolist() == [[1] * 6]


@pytest.mark.parametrize("kind", ["true is seen", "true is hidden"])
def test_padding_at_the_end_is_not_guessed(kind):
    assert real_columns(KINDS[kind](seen(side="right")), 5) is None


@pytest.mark.parametrize(
    "mask",
    [
        seen(causal=False)[:1],  # everyone sees everyone: which truth value is that?
        torch.zeros(1, 4, 5, 5).bool(),  # a mask for each head
        torch.zeros(1, 1, 1, 5).bool(),  # of a decoded token
        torch.zeros(1, 5, 5).bool(),
        torch.ones(1, 1, 5, 5, device="meta"),
        None,
    ],
)
def test_what_does_not_tell_is_none(mask):
    assert real_columns(mask, 5) is None


def test_rows_that_contradict_each_other_are_none():
    mask = seen()
    assert real_columns(torch.cat([mask[:1], ~mask[:1]]), 5) is None
