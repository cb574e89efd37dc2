"""What is said of a difference: each effect is named, in noise too, and noise alone names none."""

import time

import pytest
import torch

from hf_dumper.compare.evidence import explain

BF16 = torch.bfloat16


def golden(rows=37, channels=128):
    return torch.randn(rows, channels, generator=torch.manual_seed(0))


def with_channels(these, change):
    def effect(values):
        values[:, these] = change(values[:, these])
        return values

    return effect


def with_position(position, change):
    def effect(values):
        values[position] = change(values)
        return values

    return effect


def halves(values):
    return values.reshape(37, 2, 2, 32).flip(2).reshape(37, 128)


def order(sources):
    return lambda values: values[:, sources]


TWO = torch.arange(128)
TWO[[3, 17]] = TWO[[17, 3]]
HEADS = torch.arange(128).reshape(8, 16)[[2, 0, 1, 3, 4, 5, 7, 6]].flatten()
OWN = torch.rand(128, generator=torch.manual_seed(1)) + 0.5

EFFECTS = {
    "Channels 64..127 of 128: negated;": with_channels(slice(64, 128), torch.neg),
    "All values: scaled by a factor of 1.02;": lambda v: v * 1.02,
    "All values: shifted by an offset of 0.1;": lambda v: v + 0.1,
    "Channels 3, 17 of 128: shifted by an offset of 1;": with_channels([3, 17], lambda v: v + 1),
    "Position index 5 of 37: different from the rest;": with_position(5, lambda v: v[5].cumsum(0)),
    "Position index 5 of 37: the golden values of position index 6;": with_position(
        5, lambda v: v[6]
    ),
    "Channels 64..127 of 128, position index 5 of 37: negated;": with_position(
        5, lambda v: torch.cat([v[5, :64], -v[5, 64:]])
    ),
    "All values: first and second half of each group of 64 channels exchanged;": halves,
    "All values: first and second half of the channels exchanged;": lambda v: v.roll(64, 1),
    "All values: halves of each group of 64 channels interleaved;": (
        lambda v: v.reshape(37, 2, 2, 32).transpose(2, 3).reshape(37, 128)
    ),
    "All values: even and odd channels of each group of 64 channels taken apart;": (
        lambda v: v.reshape(37, 2, 32, 2).transpose(2, 3).reshape(37, 128)
    ),
    "All values: neighbouring channels exchanged;": (
        lambda v: v.reshape(37, 64, 2).flip(2).reshape(37, 128)
    ),
    "All values: rolled by one position, each has the golden values of the one before;": (
        lambda v: v.roll(1, 0)
    ),
    "All values: channels rolled by 5;": lambda v: v.roll(5, 1),
    "All values: channels permuted (128 of 128 moved);": order(
        torch.randperm(128, generator=torch.manual_seed(2)).roll(1)
    ),
    "Channels 3, 17 of 128: exchanged;": order(TWO),
    "All values: groups of 16 channels in the order 2, 0, 1, 3, 4, 5, 7, 6;": order(HEADS),
    "Channels 0..39 of 128: next to zero where golden has values;": with_channels(
        slice(40), torch.zeros_like
    ),
    "All values: each channel scaled by a factor of its own;": lambda v: v * OWN,
    "All values: each channel shifted by an offset of its own;": lambda v: v + OWN,
    "All values: each position scaled by a factor of its own;": lambda v: v * OWN[:37, None],
}


@pytest.mark.parametrize("words", EFFECTS)
def test_an_effect_is_named_within_noise(words):
    values = golden()
    noise = 0.002 * torch.randn(37, 128, generator=torch.manual_seed(3))
    candidate = EFFECTS[words](values.clone()) + noise
    told = explain([(values, candidate)])
    assert told[0].startswith(words.replace("All values: rolled", "All positions: rolled"))
    assert "relative error" in told[0]


EXACT = {
    "All values: zero where golden has values;": torch.zeros_like,
    "All values: rounded to bfloat16;": lambda v: v.to(BF16),
    "All values: rounded to float16;": lambda v: v.half().float(),
    "All values: clamped at +-1;": lambda v: v.clamp(-1, 1),
    "All values: clamped from below at 0;": torch.relu,
    "All values: clamped from above at 0.5;": lambda v: v.clamp(max=0.5),
    "All values: clamped to -1..2;": lambda v: v.clamp(-1, 2),
}


@pytest.mark.parametrize("words", EXACT)
def test_an_exact_effect_is_named(words):
    values = golden()
    assert explain([(values, EXACT[words](values))])[0].startswith(words)


@pytest.mark.parametrize("rows", [1, 2, 8, 37])
@pytest.mark.parametrize("seed", range(1, 6))
def test_noise_alone_names_no_effect(rows, seed):
    values = golden(rows)
    generator = torch.manual_seed(seed)
    sides = values, values + 0.01 * torch.randn(values.shape, generator=generator)
    told = explain([sides])
    assert len(told) == 1
    assert told[0].startswith("Largest difference at row 0, position index")


@pytest.mark.parametrize("rows", [1, 2, 8, 37])
def test_unrelated_values_name_no_effect(rows):
    values = golden(rows + 1)
    assert len(explain([(values[1:], torch.randn(rows, 128, generator=torch.manual_seed(9)))])) == 1


@pytest.mark.parametrize("massive", [(0, slice(None)), (slice(None), 7), (0, 7)])
def test_noise_in_massive_values_names_no_effect(massive):
    values = golden()
    values[massive] *= 1000
    noise = 1e-3 * torch.randn(37, 128, generator=torch.manual_seed(1))
    assert len(explain([(values.half(), (values * (1 + noise)).half())])) == 1


def test_errors_before_and_after_are_stated():
    values = golden()
    told = explain([(values, -values)])
    assert told[0] == "All values: negated; relative error 2, 0 with that undone."


def test_one_row_of_several_is_named_by_its_batch_row():
    values = golden()
    told = explain([(values, values), (values, -values), (values, values)], rows=[4, 6, 7])
    assert told[0].startswith("Row 6: negated;")
    assert "elsewhere at most 0." in told[0]


def test_a_row_with_the_values_of_another_is_named():
    one, other = golden(), golden().roll(9, 0)
    three = one * 2
    told = explain([(one, one), (other, one), (three, three)])
    assert told[0].startswith("Row 1: the golden values of row 0;")


def test_one_position_of_every_row_is_named_once():
    values = golden()
    candidate = with_position(5, lambda v: -v[5])(values.clone())
    told = explain([(values, candidate), (values, candidate)])
    assert told[0].startswith("Position index 5 of 37: negated;")


def test_a_birth_of_nan_is_told_with_its_place_and_number():
    values = golden()
    candidate = values.clone()
    candidate[3, 5], candidate[4, 6] = float("nan"), float("inf")
    (told,) = explain([(values, candidate)])
    assert told == (
        f"NaN or infinity at row 0, position index 3, channel 5: golden {values[3, 5]:.6g}, "
        "candidate nan, the first of 2."
    )


def test_nan_does_not_hide_an_effect():
    values = golden()
    candidate = -values
    candidate[3, 5] = float("nan")
    told = explain([(values, candidate)])
    assert told[0].startswith("NaN or infinity at row 0")
    assert told[1].startswith("All values: negated;")


def test_without_axes_neither_positions_nor_channels_are_named():
    values = golden()
    told = explain([(values, values * 1.5)], by_token=False)
    assert told[0].startswith("All values: scaled by a factor of 1.5;")
    assert "at element" in told[1]
    assert "position" not in " ".join(told)


def test_equal_values_are_called_equal():
    assert explain([(golden(), golden())]) == ("All values are equal.",)


def test_no_values_are_called_none():
    assert explain([(torch.empty(0, 4), torch.empty(0, 4))]) == ("There are no values.",)


def test_a_single_value_proves_no_fit():
    assert explain([(torch.tensor([[1.0]]), torch.tensor([[1.02]]))]) == (
        "Largest difference at row 0, position index 0, channel 0: golden 1, candidate 1.02.",
    )


def test_a_fit_of_constant_values_is_told_both_ways():
    told = explain([(torch.ones(4, 4), torch.full((4, 4), 1.5))])
    assert told[0].startswith(
        "All values: scaled by a factor of 1.5 or shifted by an offset of 0.5"
    )


def test_rows_of_unequal_width_are_described():
    wide = torch.randn(4, 32, generator=torch.manual_seed(0))
    told = explain([(wide[:, :16], -wide[:, :16]), (wide, -wide)])
    assert told[0].startswith("All values: negated;")
    assert "(in an even sample)" in told[0]


def test_large_tensors_take_a_bounded_time():
    values = torch.ones(1024, 1024).cumsum(1).to(BF16).expand(4, 1024, 1024).reshape(4096, 1024)
    start = time.perf_counter()
    told = explain([(values, -values)])
    assert time.perf_counter() - start < 5  # a tenth of that, on an idle machine
    assert told[0].endswith("(in an even sample).")
