"""Rows that change places: which one continues which, and where a returned sequence came from."""

import pytest
import torch

from hf_dumper.capture.beams import BeamRows, beam_facts
from hf_dumper.errors import CaptureError


@pytest.fixture
def beams():
    """Two prompts with two rows each: the rows of the first cross over."""
    rows = BeamRows(2)
    rows.see(torch.tensor([[3], [3], [3], [3]]))
    rows.see(torch.tensor([[3, 5], [3, 6], [3, 6], [3, 5]]))
    rows.see(torch.tensor([[3, 6, 7], [3, 5, 8], [3, 6, 1], [3, 6, 2]]))
    return rows


def test_parents_are_rows_of_the_same_prompt_with_the_same_ids():
    rows = BeamRows(2)
    assert rows.see(torch.tensor([[3], [3], [3], [3]])) == [0, 1, 2, 3]
    assert rows.see(torch.tensor([[3, 5], [3, 6], [3, 6], [3, 5]])) == [0, 0, 2, 2]
    assert rows.see(torch.tensor([[3, 6, 7], [3, 5, 8], [3, 6, 1], [3, 6, 2]])) == [1, 0, 2, 2]


def test_a_row_that_continues_nothing_is_an_error(beams):
    with pytest.raises(CaptureError, match="Row 1 continues a sequence that no row had"):
        beams.see(torch.tensor([[3, 6, 7, 1], [3, 9, 9, 1], [3, 6, 1, 1], [3, 6, 1, 1]]))


def test_the_path_of_a_returned_sequence_is_its_rows(beams):
    assert beams.paths([[6, 7, 4], [6, 2, 4]]) == [[0, 1, 0], [2, 2, 3]]


def test_the_path_of_a_sequence_that_ended_early_is_short(beams):
    assert beams.paths([[4, 0, 0], [5, 0, 0]]) == [[0], [2, 3]]


def test_several_sequences_of_a_prompt_have_a_path_each(beams):
    returned = [[6, 7, 1], [5, 8, 1], [6, 1, 1], [6, 2, 1]]
    assert beams.paths(returned) == [[0, 1, 0], [0, 0, 1], [2, 2, 2], [2, 2, 3]]


def test_scores_are_those_that_were_returned_or_none(beams):
    ids = torch.tensor([[6, 7, 4], [6, 2, 4]])
    assert beam_facts(beams, ids, ids.tolist())["scores"] is None
    result = type("Result", (), {"sequences_scores": torch.tensor([-0.5, -1.5])})()
    assert beam_facts(beams, result, ids.tolist())["scores"] == [-0.5, -1.5]
