"""The clock: tokens by absolute length, positions by mask and cache."""

import numpy as np
import pytest
import torch

from hf_dumper.capture.clock import TokenClock
from hf_dumper.capture.inputs import RootInputs
from hf_dumper.capture.integers import copy_mask
from hf_dumper.core.types import Phase


def inputs(rows, cols, *, past=0, mask=None, keep=0, readable=True):
    copied = None if mask is None else copy_mask(torch.tensor(mask))
    return RootInputs(rows, cols, keep, past, copied, readable, None)


def chosen(rows, length, *last):
    """Return what `advance` takes: ids of this length, whose last ones end no row if not given."""
    return length, list(last) or [9] * rows


@pytest.fixture
def clock():
    made = TokenClock()
    made.open_run(3, generating=True, eos=[2])
    return made


def positions(tick):
    return None if tick.positions is None else tick.positions.tolist()


def test_the_first_forward_of_a_generation_is_the_prefill(clock):
    tick = clock.tick(inputs(2, 5))
    assert (tick.run, tick.forward, tick.token, tick.phase) == (3, 0, 0, Phase.PREFILL)


def test_a_token_is_the_length_of_the_ids_less_the_prompt(clock):
    clock.tick(inputs(1, 5))
    clock.set_prompt(5)
    clock.advance(*chosen(1, 6))
    assert clock.tick(inputs(1, 1, past=5)).token == 1


def test_several_tokens_at_once_advance_by_their_number(clock):
    clock.set_prompt(5)
    clock.advance(*chosen(1, 9))
    assert clock.token == 4


def test_only_the_first_processor_call_sets_the_prompt(clock):
    clock.set_prompt(5)
    clock.set_prompt(8)
    assert clock.prompt_length == 5


def test_the_criteria_alone_are_enough(clock):
    clock.advance(*chosen(1, 6))
    clock.advance(*chosen(1, 7))
    assert (clock.prompt_length, clock.token) == (5, 2)


def test_chunks_of_a_prefill_are_forwards_of_one_token(clock):
    ticks = [clock.tick(inputs(1, 3, past=past)) for past in (0, 3)]
    assert [(t.forward, t.token, t.phase) for t in ticks] == [
        (0, 0, Phase.PREFILL),
        (1, 0, Phase.PREFILL),
    ]


def test_a_forward_after_the_first_token_is_a_decode(clock):
    clock.advance(*chosen(1, 6))
    assert clock.tick(inputs(1, 1, past=5)).phase is Phase.DECODE


def test_a_bare_forward_is_token_0():
    clock = TokenClock()
    clock.open_run(0, generating=False)
    tick = clock.tick(inputs(1, 5))
    assert (tick.token, tick.phase) == (0, Phase.FORWARD)


def test_a_new_run_starts_from_the_beginning(clock):
    clock.tick(inputs(1, 5))
    clock.set_prompt(5)
    clock.advance(*chosen(1, 6, 2))
    clock.open_run(4, generating=True)
    tick = clock.tick(inputs(1, 3))
    assert (tick.run, tick.forward, tick.token, positions(tick)) == (4, 0, 0, [[0, 1, 2]])


def test_what_runs_before_the_first_forward_is_token_0_of_forward_0(clock):
    tick = clock.provisional()
    assert (tick.forward, tick.token, tick.phase) == (0, 0, Phase.PREFILL)


def test_without_a_mask_positions_are_columns(clock):
    assert positions(clock.tick(inputs(2, 3))) == [[0, 1, 2]] * 2


def test_left_padding_is_minus_one(clock):
    mask = [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert positions(clock.tick(inputs(2, 4, mask=mask))) == [[-1, -1, 0, 1], [0, 1, 2, 3]]


def test_right_padding_is_minus_one(clock):
    mask = [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert positions(clock.tick(inputs(2, 4, mask=mask))) == [[0, 1, -1, -1], [0, 1, 2, 3]]


def test_a_hole_in_the_mask_is_not_counted(clock):
    assert positions(clock.tick(inputs(1, 4, mask=[[1, 0, 1, 1]]))) == [[0, -1, 1, 2]]


def test_a_fully_masked_row_is_all_padding(clock):
    assert positions(clock.tick(inputs(1, 3, mask=[[0, 0, 0]]))) == [[-1, -1, -1]]


def test_a_cached_prefix_counts(clock):
    assert positions(clock.tick(inputs(1, 2, past=5))) == [[5, 6]]


def test_a_mask_over_cache_and_new_columns_counts_only_what_is_real(clock):
    mask = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert positions(clock.tick(inputs(2, 1, past=4, mask=mask))) == [[2], [4]]


def test_a_mask_of_the_new_columns_alone_counts_the_cache_as_real(clock):
    assert positions(clock.tick(inputs(1, 2, past=5, mask=[[1, 1]]))) == [[5, 6]]


@pytest.mark.parametrize("width", [1, 4, 9])
def test_a_mask_of_another_width_tells_nothing(clock, width):
    assert positions(clock.tick(inputs(1, 2, past=5, mask=[[1] * width]))) is None


def test_a_mask_of_other_rows_tells_nothing(clock):
    assert positions(clock.tick(inputs(2, 2, mask=[[1, 1]]))) is None


def test_a_mask_that_cannot_be_read_tells_nothing(clock):
    assert positions(clock.tick(inputs(1, 2, readable=False))) is None


def test_a_forward_without_columns_has_no_positions(clock):
    assert positions(clock.tick(inputs(4, 0))) is None


def test_a_row_is_padding_from_the_end_on(clock):
    clock.tick(inputs(2, 3))
    clock.set_prompt(3)
    clock.advance(*chosen(2, 4, 2, 9))
    assert positions(clock.tick(inputs(2, 1, past=3))) == [[-1], [3]]


def test_a_row_that_ended_stays_padding(clock):
    clock.tick(inputs(2, 3))
    clock.set_prompt(3)
    clock.advance(*chosen(2, 4, 2, 9))
    clock.tick(inputs(2, 1, past=3))
    clock.advance(*chosen(2, 5, 0, 9))
    assert positions(clock.tick(inputs(2, 1, past=4))) == [[-1], [4]]


def test_without_cache_a_row_is_padding_only_from_its_end_on(clock):
    clock.tick(inputs(2, 3))
    clock.set_prompt(3)
    clock.advance(*chosen(2, 4, 2, 9))
    assert positions(clock.tick(inputs(2, 4))) == [[0, 1, 2, -1], [0, 1, 2, 3]]


def test_a_cache_that_does_not_tell_is_followed_by_what_went_in(clock):
    clock.tick(inputs(1, 3, past=0))
    assert positions(clock.tick(inputs(1, 2, past=None))) == [[3, 4]]


def test_states_from_before_the_run_tell_no_positions(clock):
    assert positions(clock.tick(inputs(1, 3, past=None))) is None
    assert positions(clock.tick(inputs(1, 2, past=None))) is None


@pytest.mark.parametrize(("keep", "told"), [(1, 1), (5, 0), (7, 0), (0, 0)])
def test_keep_is_told_only_when_it_cuts(clock, keep, told):
    assert clock.tick(inputs(1, 5, keep=keep)).keep == told


def test_positions_are_int32(clock):
    assert clock.tick(inputs(1, 5, mask=[[1] * 5])).positions.dtype == np.int32


def test_what_was_padding_still_is_where_a_step_is_given_no_mask(clock):
    clock.tick(inputs(2, 4, mask=[[0, 0, 1, 1], [1, 1, 1, 1]]))
    clock.advance(*chosen(2, 5))
    assert positions(clock.tick(inputs(2, 1, past=4))) == [[2], [4]]


def test_a_mask_of_an_earlier_run_is_forgotten(clock):
    clock.tick(inputs(1, 4, mask=[[0, 0, 1, 1]]))
    clock.open_run(4, generating=True)
    assert positions(clock.tick(inputs(1, 5))) == [[0, 1, 2, 3, 4]]


def test_a_cache_with_columns_of_the_models_own_is_not_counted(clock):
    """The model put 32 columns before the prompt, and is fed all ids again at every token."""
    clock.tick(inputs(1, 5))
    clock.advance(*chosen(1, 6))
    assert positions(clock.tick(inputs(1, 6, past=37))) == [[0, 1, 2, 3, 4, 5]]
