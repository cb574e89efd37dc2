"""The callbacks, called as generate() calls them."""

import copy
import pickle

import pytest
import torch

from hf_dumper.capture.generation import DumpLogitsProcessor, DumpStoppingCriteria, FollowTokens
from hf_dumper.errors import CaptureError


def ids(rows, length):
    return torch.zeros(rows, length, dtype=torch.long)


def test_the_processor_returns_the_very_scores_it_got():
    scores = torch.randn(2, 5)
    assert DumpLogitsProcessor(lambda *_: None)(ids(2, 3), scores) is scores


def test_the_processor_tells_ids_and_scores():
    told = []
    given = ids(2, 3), torch.randn(2, 5)
    DumpLogitsProcessor(lambda *seen: told.append(seen))(*given)
    assert told[0][0] is given[0]
    assert told[0][1] is given[1]


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_the_criteria_answer_for_every_row_they_are_shown(rows):
    answer = DumpStoppingCriteria(lambda _ids: None)(ids(rows, 4), None)
    assert answer.tolist() == [False] * rows
    assert answer.dtype is torch.bool


def test_the_criteria_take_keywords_they_do_not_know():
    assert not DumpStoppingCriteria(lambda _ids: None)(ids(1, 2), (), anything=1).any()


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copied_callback_tells_nobody(again):
    told = []
    scores = torch.randn(1, 4)
    assert again(DumpLogitsProcessor(lambda *_: told.append(1)))(ids(1, 2), scores) is scores
    again(DumpStoppingCriteria(lambda _: told.append(1)))(ids(1, 2), scores)
    assert not told


def follow(follower, prompt, tokens, rows=2, vocabulary=8):
    """Return the tokens [tokens, rows] that a greedy generation is given."""
    made = []
    for t in range(tokens):
        forced = follower(ids(rows, prompt + t), torch.randn(rows, vocabulary))
        made.append(forced.argmax(-1).tolist())
    return made


def test_each_row_gets_its_own_ids():
    assert follow(FollowTokens([[1, 2, 3], [4, 5, 6]]), 5, 3) == [[1, 4], [2, 5], [3, 6]]


def test_a_tensor_of_ids_is_as_good():
    assert follow(FollowTokens(torch.tensor([[1, 2], [4, 5]])), 5, 2) == [[1, 4], [2, 5]]


def test_a_shorter_row_repeats_its_last():
    assert follow(FollowTokens([[1], [4, 5, 6]]), 5, 3) == [[1, 4], [1, 5], [1, 6]]


def test_every_other_token_is_impossible():
    forced = FollowTokens([[3]])(ids(1, 2), torch.randn(1, 6))
    assert forced.softmax(-1).tolist() == [[0, 0, 0, 1, 0, 0]]


def test_following_does_not_write_into_the_scores():
    scores = torch.randn(1, 6)
    before = scores.clone()
    FollowTokens([[3]])(ids(1, 2), scores)
    assert torch.equal(scores, before)


def test_following_keeps_dtype_and_shape():
    forced = FollowTokens([[3]])(ids(1, 2), torch.randn(1, 6, dtype=torch.bfloat16))
    assert (forced.dtype, forced.shape) == (torch.bfloat16, (1, 6))


def test_another_generation_starts_at_the_first_id_again():
    follower = FollowTokens([[1, 2, 3], [4, 5, 6]])
    follow(follower, 5, 2)
    assert follow(follower, 5, 3) == [[1, 4], [2, 5], [3, 6]]


@pytest.mark.parametrize("rows", [1, 4])
def test_another_number_of_rows_is_an_error(rows):
    with pytest.raises(CaptureError, match=rf"2 rows of ids, generate\(\) {rows}"):
        FollowTokens([[1], [2]])(ids(rows, 3), torch.randn(rows, 8))


@pytest.mark.parametrize("empty", [[], [[]], [[1], []], torch.empty(2, 0, dtype=torch.long)])
def test_a_row_without_ids_is_refused(empty):
    with pytest.raises(CaptureError, match="at least one token id"):
        FollowTokens(empty)


def test_following_keeps_its_own_copy_of_the_ids():
    given = [[1, 2], [3, 4]]
    follower = FollowTokens(given)
    given[0][0] = 7
    assert follow(follower, 5, 1) == [[1, 3]]


def test_an_id_that_the_vocabulary_lacks_is_an_error():
    with pytest.raises(CaptureError, match="is to choose id 8 of a vocabulary of 8"):
        FollowTokens([[5], [8]])(ids(2, 3), torch.randn(2, 8))
