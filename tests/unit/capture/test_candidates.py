"""The likeliest tokens by raw logits, against cases worked out by hand and against torch."""

import math

import numpy as np
import pytest
import torch

from hf_dumper.capture.candidates import as_floats, rank_candidates


def ranked(*rows, chosen=None, count=5):
    table = np.array(rows, np.float32)
    return rank_candidates(table, chosen or [0] * len(rows), count)


def test_the_largest_logits_come_first_with_their_share():
    found = ranked([0.0, math.log(6), math.log(2), math.log(1)], chosen=[2], count=2)
    assert found.ids.tolist() == [[1, 2]]
    assert found.probabilities[0] == pytest.approx([0.6, 0.2])
    assert found.margin[0] == pytest.approx(math.log(3))
    assert found.chosen_probability[0] == pytest.approx(0.2)
    assert found.chosen_rank.tolist() == [2]


def test_of_equal_logits_the_lower_id_comes_first():
    found = ranked([1, 2, 1, 2, 2, 1, 2], count=3, chosen=[6])
    assert found.ids.tolist() == [[1, 3, 4]]
    assert found.margin.tolist() == [0]
    assert found.chosen_rank.tolist() == [1]  # none is greater


def test_a_small_vocabulary_has_fewer_candidates():
    found = ranked([3.0], count=5)
    assert found.ids.tolist() == [[0]]
    assert found.probabilities.tolist() == [[1]]
    assert math.isnan(found.margin[0])


def test_a_nan_comes_first_and_leaves_no_probability():
    found = ranked([1, math.nan, 5, math.inf], chosen=[2], count=3)
    assert found.ids.tolist() == [[1, 3, 2]]
    assert np.isnan(found.probabilities).all()
    assert np.isnan(found.chosen_probability).all()


def test_a_forbidden_second_makes_the_margin_infinite():
    found = ranked([1, -math.inf, -math.inf], count=2)
    assert found.margin.tolist() == [math.inf]
    assert found.probabilities.tolist() == [[1, 0]]


def test_an_id_beyond_the_vocabulary_has_no_rank():
    found = ranked([1, 2], chosen=[2])
    assert math.isnan(found.chosen_probability[0])
    assert found.chosen_rank.tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_values_are_those_of_torch_in_every_type(dtype):
    logits = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0)).to(dtype)
    memory = bytearray(logits.view(torch.uint8).numpy().tobytes()) + b"more"
    values = as_floats(memory, logits.numel(), dtype).reshape(logits.shape)
    assert np.array_equal(values, logits.to(torch.float64).numpy())
    found = rank_candidates(values, [5, 6, 7])
    wide = logits.to(torch.float64)
    share = wide.softmax(-1)
    assert np.allclose(found.probabilities, share.topk(5).values.numpy(), rtol=1e-5)
    assert np.array_equal(wide.gather(1, torch.tensor(found.ids)), wide.topk(5).values)
    assert found.chosen_probability == pytest.approx(share[[0, 1, 2], [5, 6, 7]].numpy(), rel=1e-5)


def test_a_type_that_numpy_lacks_is_converted():
    values = torch.tensor([0.5, -2.0]).to(torch.float8_e5m2)
    memory = bytearray(values.view(torch.uint8).numpy().tobytes())
    assert as_floats(memory, 2, torch.float8_e5m2).tolist() == [0.5, -2.0]


@pytest.mark.parametrize("place", [0, 63, 64, 4031, 4032, 4034])
def test_a_nan_is_found_anywhere(place):
    values = torch.randn(1, 4035, generator=torch.Generator().manual_seed(0)).numpy()
    values[0, place] = math.nan
    found = rank_candidates(values, [1])
    assert found.ids[0, 0] == place
    rest = np.delete(values[0], place)
    assert values[0, found.ids[0, 1:]].tolist() == sorted(rest.tolist(), reverse=True)[:4]


@pytest.mark.parametrize(
    "places", [range(5), [4030, 4031, 4032, 4033, 4034], [3, 64, 128, 999, 4034]]
)
def test_the_largest_are_found_wherever_they_lie(places):
    values = np.zeros((1, 4035), np.float32)
    values[0, places] = [3, 5, 2, 4, 1]
    found = rank_candidates(values, [places[0]])
    assert values[0, found.ids[0]].tolist() == [5, 4, 3, 2, 1]
    assert found.chosen_rank.tolist() == [3]


def test_of_equal_logits_in_a_large_vocabulary_the_lowest_ids_come_first():
    assert rank_candidates(np.zeros((1, 4035)), [0]).ids.tolist() == [[0, 1, 2, 3, 4]]
