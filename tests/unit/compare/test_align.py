"""Which values of two dumps belong together, whatever the batches, chunks and axes."""

import pytest
import torch

from hf_dumper.comparison import compare
from hf_dumper.core.verdicts import Verdict
from tests.unit.compare.dumps import DumpMaker, ramp


@pytest.fixture
def dumps(tmp_path):
    return DumpMaker(tmp_path / "golden"), DumpMaker(tmp_path / "candidate")


def results(golden, candidate):
    return compare(golden.reader(), candidate.reader()).results.to_pylist()


def only(golden, candidate):
    (row,) = results(golden, candidate)
    return row


PROMPT = [[5, 6, 7]]
WHOLE = [[0, 1, 2]]
BATCH = [[8, 9, 8, 9], [0, 5, 6, 7]]
PLACES = [[0, 1, 2, 3], [-1, 0, 1, 2]]


class TestAxes:
    """One row of three positions, against a batch whose second row is that row, padded left."""

    def compared(self, dumps, single, single_axes, batch, batch_axes):
        golden, candidate = dumps
        golden.run(PROMPT, [[1]]).forward(0, WHOLE, m=(single, single_axes))
        candidate.run(BATCH, [[1], [1]]).forward(0, PLACES, m=(batch, batch_axes))
        return only(golden, candidate)

    def batch_of(self, values):
        """Return [2, 4, ...] with the values at the places of the second row, noise elsewhere."""
        batch = torch.full((2, 4, *values.shape[1:]), 99.0)
        batch[1, 1:] = values
        return batch

    def test_row_and_position(self, dumps):
        x = ramp(3, 2)
        row = self.compared(dumps, x[None], "row,pos,-", self.batch_of(x), "row,pos,-")
        assert (row["verdict"], row["elements"]) == ("identical", 6)

    def test_row_times_position(self, dumps):
        x = ramp(3, 2)
        flat = self.batch_of(x).flatten(0, 1)
        row = self.compared(dumps, x, "row*pos,-", flat, "row*pos,-")
        assert (row["verdict"], row["elements"]) == ("identical", 6)

    def test_row_times_position_against_row_and_position(self, dumps):
        x = ramp(3, 2)
        row = self.compared(dumps, x, "row*pos,-", self.batch_of(x), "row,pos,-")
        assert (row["verdict"], row["elements"]) == ("identical", 6)

    def test_heads_before_positions(self, dumps):
        x = ramp(3, 2, 5)
        batch = self.batch_of(x).transpose(1, 2)
        row = self.compared(
            dumps, x.transpose(0, 1)[None], "row,-,pos,-", batch.contiguous(), "row,-,pos,-"
        )
        assert (row["verdict"], row["elements"]) == ("identical", 30)

    def test_keys_are_aligned_by_position(self, dumps):
        x = ramp(1, 2, 3, 3)
        batch = torch.full((2, 2, 4, 4), 99.0)
        batch[1, :, 1:, 1:] = x[0]
        row = self.compared(dumps, x, "row,-,pos,pos", batch, "row,-,pos,pos")
        assert (row["verdict"], row["elements"]) == ("identical", 18)

    def test_positions_shared_by_all_rows(self, dumps):
        golden, candidate = dumps
        x = ramp(1, 3, 2)
        rows = [[5, 6, 7], [8, 9, 8]]
        golden.run(PROMPT, [[1]]).forward(0, WHOLE, m=(x, "row,pos,-"))
        candidate.run(rows, [[1], [1]]).forward(0, WHOLE * 2, m=(x, "-,pos,-"))
        assert only(golden, candidate)["verdict"] == "identical"

    def test_a_short_position_axis_covers_the_last_columns(self, dumps):
        x = ramp(3, 2)
        row = self.compared(dumps, x[None, 2:], "row,pos,-", self.batch_of(x)[:, 1:], "row,pos,-")
        assert (row["verdict"], row["elements"]) == ("identical", 2)

    def test_a_row_without_positions(self, dumps):
        batch = torch.stack([torch.full((4,), 99.0), ramp(4)])
        row = self.compared(dumps, ramp(1, 4), "row,-", batch, "row,-")
        assert (row["verdict"], row["elements"], row["row"]) == ("identical", 4, None)

    def test_unknown_axes_cannot_be_taken_apart(self, dumps):
        row = self.compared(dumps, ramp(3, 2), "", ramp(8, 2), "")
        assert row["verdict"] == Verdict.NOT_COMPUTABLE
        assert "which axis is row" in row["reason"]

    def test_unknown_axes_are_compared_whole_between_equal_forwards(self, dumps):
        golden, candidate = dumps
        for side in dumps:
            side.run(PROMPT, [[1]]).forward(0, WHOLE, m=(ramp(7), ""))
        row = only(golden, candidate)
        assert (row["verdict"], row["elements"], row["token_rel_l2"]) == ("identical", 7, None)

    def test_other_channels_are_another_shape(self, dumps):
        row = self.compared(dumps, ramp(1, 3, 2), "row,pos,-", ramp(2, 4, 3), "row,pos,-")
        assert (row["verdict"], row["reason"]) == (Verdict.SHAPE, "[1, 3, 2] against [2, 4, 3]")

    def test_two_by_three_is_not_three_by_two(self, dumps):
        golden, candidate = dumps
        golden.run(PROMPT, [[1]]).forward(0, WHOLE, m=(ramp(2, 3), ""))
        candidate.run(PROMPT, [[1]]).forward(0, WHOLE, m=(ramp(3, 2), ""))
        assert only(golden, candidate)["verdict"] == Verdict.SHAPE


class TestKeys:
    """An axis may run over the columns of the cache, padding included, wherever it stands."""

    PADDED = ([[5, 6, 7], [0, 8, 9]], [[1], [1]])
    ALONE = ([[8, 9]], [[1]])

    def steps(self, dumps, axes, put):
        """Prefill and one step: of a padded batch, and of its second row alone."""
        golden, candidate = dumps
        keys = ramp(4, 2)
        golden.run(*self.ALONE).forward(0, [[0, 1]], m=(put(keys[None, :2]), axes))
        golden.forward(1, [[2]], m=(put(keys[None, :3]), axes))
        candidate.run(*self.PADDED)
        first = torch.stack([keys[:3], torch.cat([keys[3:], keys[:2]])])
        candidate.forward(0, [[0, 1, 2], [-1, 0, 1]], m=(put(first), axes))
        second = torch.stack([keys, torch.cat([keys[3:], keys[:3]])])
        candidate.forward(1, [[3], [2]], m=(put(second), axes))
        comparison = compare(golden.reader(), candidate.reader())
        return comparison.results.to_pylist()[-1]

    def test_before_the_channels(self, dumps):
        row = self.steps(dumps, "row,pos,-,-", lambda keys: keys[:, None])
        assert (row["verdict"], row["elements"]) == ("identical", 6)

    def test_after_the_queries(self, dumps):
        row = self.steps(dumps, "row,pos,-", lambda keys: keys[:, None, :, 0].contiguous())
        assert (row["verdict"], row["elements"]) == ("identical", 3)

    def test_that_are_not_one_more_than_the_step_before_are_channels(self, dumps):
        golden, candidate = dumps
        golden.run(*self.ALONE).forward(0, [[0, 1]], m=(ramp(1, 2, 3), "row,pos,-"))
        golden.forward(1, [[2]], m=(ramp(1, 1, 3), "row,pos,-"))
        candidate.run([[0, 8, 9]], [[1]])
        candidate.forward(0, [[-1, 0, 1]], m=(ramp(1, 3, 3), "row,pos,-"))
        candidate.forward(1, [[2]], m=(ramp(1, 1, 3), "row,pos,-"))
        comparison = compare(golden.reader(), candidate.reader())
        row = comparison.results.to_pylist()[-1]
        assert (row["verdict"], row["elements"]) == ("identical", 3)

    def test_that_padding_hides_are_left_out_though_they_are_as_many(self, dumps):
        golden, candidate = dumps
        for side, garbage in ((golden, 7.0), (candidate, 9.0)):
            side.run([[0, 8, 9]], [[1]])
            for forward, table in enumerate(([[-1, 0, 1]], [[2]])):
                keys = torch.cat([torch.full((1, 2), garbage), ramp(2 + forward, 2)])
                side.forward(forward, table, m=(keys[None, None], "row,pos,-,-"))
        comparison = compare(golden.reader(), candidate.reader())
        row = comparison.results.to_pylist()[-1]
        assert (row["verdict"], row["elements"]) == ("identical", 6)

    def test_of_another_number_in_each_forward_are_no_fault(self, dumps):
        """Keys that a model compresses: how many there are is up to the layout."""
        golden, candidate = dumps
        golden.run(PROMPT, [[1]]).forward(0, WHOLE, m=(ramp(1, 3, 1), "row,pos,-"))
        golden.forward(1, [[3]], m=(ramp(1, 1, 2), "row,pos,-"))
        candidate.run(PROMPT, [[1]]).forward(0, [[0]], m=(ramp(1, 1, 0), "row,pos,-"))
        candidate.forward(0, [[1, 2]], m=(ramp(1, 2, 0), "row,pos,-"))
        candidate.forward(1, [[3]], m=(ramp(1, 1, 2), "row,pos,-"))
        rows = compare(golden.reader(), candidate.reader()).results.to_pylist()
        assert [row["verdict"] for row in rows] == [Verdict.NOT_COMPUTABLE, "identical"]


class TestForwards:
    def test_chunks_are_put_together(self, dumps):
        golden, candidate = dumps
        x = ramp(1, 3, 2)
        golden.run(PROMPT, [[1]]).forward(0, WHOLE, m=(x, "row,pos,-"))
        candidate.run(PROMPT, [[1]])
        candidate.forward(0, [[0, 1]], m=(x[:, :2], "row,pos,-"))
        candidate.forward(0, [[2]], m=(x[:, 2:], "row,pos,-"))
        row = only(golden, candidate)
        assert (row["verdict"], row["elements"]) == ("identical", 6)

    def test_without_cache_the_forward_of_the_same_token_is_taken(self, dumps):
        golden, candidate = dumps
        golden.run([[5, 6]], [[1, 2]])
        golden.forward(0, [[0, 1]], m=(ramp(1, 2, 1), "row,pos,-"))
        golden.forward(1, [[2]], m=(torch.full((1, 1, 1), 7.0), "row,pos,-"))
        candidate.run([[5, 6]], [[1, 2]])
        candidate.forward(0, [[0, 1]], m=(ramp(1, 2, 1), "row,pos,-"))
        again = torch.tensor([[[50.0], [60.0], [7.0]]])  # a later forward, other at old positions
        candidate.forward(1, [[0, 1, 2]], m=(again, "row,pos,-"))
        assert {row["verdict"] for row in results(golden, candidate)} == {"identical"}

    def test_a_position_that_was_fed_again_counts_the_last_time(self, dumps):
        golden, candidate = dumps
        x = ramp(1, 4, 1)
        golden.run(PROMPT, [[1]]).forward(0, [[0, 1, 2, 3]], m=(x, "row,pos,-"))
        candidate.run(PROMPT, [[1]])
        candidate.forward(0, [[0, 1, 2]], m=(torch.tensor([[[1.0], [2.0], [99.0]]]), "row,pos,-"))
        candidate.forward(1, [[2, 3]], m=(x[:, 2:], "row,pos,-"))
        assert only(golden, candidate)["verdict"] == "identical"

    def test_positions_that_the_candidate_lacks_are_counted(self, dumps):
        golden, candidate = dumps
        x = ramp(1, 3, 2)
        golden.run(PROMPT, [[1]]).forward(0, WHOLE, m=(x, "row,pos,-"))
        candidate.run(PROMPT, [[1]]).forward(0, [[0, 1]], m=(x[:, :2], "row,pos,-"))
        row = only(golden, candidate)
        assert (row["elements"], row["reason"]) == (4, "1 positions have no partner")

    def test_a_record_of_padding_alone_is_counted_not_compared(self, dumps):
        for side in dumps:
            side.run(PROMPT, [[2, 0]])
            side.forward(0, WHOLE, m=(ramp(1, 3, 1), "row,pos,-"))
            side.forward(1, [[-1]], m=(ramp(1, 1, 1), "row,pos,-"))
        comparison = compare(*(side.reader() for side in dumps))
        assert comparison.results.num_rows == 1
        assert comparison.coverage["golden records of padding"] == 1


class TestRows:
    def test_what_comes_after_another_token_is_left_out(self, dumps):
        for side, generated in zip(dumps, ([[1, 2, 3]], [[1, 9, 3]]), strict=True):
            side.run(PROMPT, generated)
            side.forward(0, WHOLE, m=(ramp(1, 3, 1), "row,pos,-"))
            side.forward(1, [[3]], m=(ramp(1, 1, 1), "row,pos,-"))
            side.forward(2, [[4]], m=(ramp(1, 1, 1) * len(generated), "row,pos,-"))
        comparison = compare(*(side.reader() for side in dumps))
        assert comparison.results.column("token").to_pylist() == [0, 1]
        (left,) = [r for r in comparison.unmatched.to_pylist() if r["side"] == "golden"]
        assert (left["token"], left["verdict"]) == (2, Verdict.TRUNCATED)
        assert "token 1 differs" in left["reason"]

    def test_only_the_row_that_differs_is_cut(self, dumps):
        rows = [[5, 6], [7, 8]]
        for side, second in zip(dumps, (2, 3), strict=True):
            side.run(rows, [[1, 1], [second, 1]])
            side.forward(0, [[0, 1]] * 2, m=(ramp(2, 2, 1), "row,pos,-"))
            side.forward(1, [[2]] * 2, m=(ramp(2, 1, 1), "row,pos,-"))
        found = results(*dumps)
        assert [(r["elements"], r["truncated"]) for r in found] == [(4, 0), (1, 1)]

    def test_rows_without_ids_are_matched_by_number(self, dumps):
        for side in dumps:
            side.run(None, [[1]]).forward(0, WHOLE, m=(ramp(1, 3, 1), "row,pos,-"))
        comparison = compare(*(side.reader() for side in dumps))
        assert comparison.results.column("verdict").to_pylist() == ["identical"]
        assert "rows" in {finding.subject for finding in comparison.regime}


class TestNames:
    def test_a_keyword_is_found_by_its_parameter(self, dumps):
        golden, candidate = dumps
        x = ramp(1, 3, 2), "row,pos,-", {"param": "hidden_states"}
        golden.run(PROMPT, [[1]]).forward(0, WHOLE, **{"m__input.0": x})
        candidate.run(PROMPT, [[1]]).forward(0, WHOLE, **{"m__input.hidden_states": x})
        assert only(golden, candidate)["verdict"] == "identical"

    def test_calls_are_told_apart(self, dumps):
        for side in dumps:
            side.run(PROMPT, [[1]])
            first = ramp(1, 3, 1), "row,pos,-", {"call": 0}
            second = ramp(1, 3, 1) * 2, "row,pos,-", {"call": 1}
            side.forward(0, WHOLE, m=first, m__output=second)
        assert [r["call"] for r in results(*dumps)] == [0, 1]

    def test_records_of_one_side_are_listed(self, dumps):
        golden, candidate = dumps
        x = ramp(1, 3, 2), "row,pos,-"
        golden.run(PROMPT, [[1]]).forward(0, WHOLE, a=x, b=x)
        candidate.run(PROMPT, [[1]]).forward(0, WHOLE, a=x, c=x)
        comparison = compare(golden.reader(), candidate.reader())
        listed = [(r["side"], r["module"]) for r in comparison.unmatched.to_pylist()]
        assert listed == [("golden", "b"), ("candidate", "c")]

    def test_a_record_that_a_side_skipped_has_no_number(self, dumps):
        golden, candidate = dumps
        x = ramp(1, 3, 2), "row,pos,-"
        golden.run(PROMPT, [[1]]).forward(0, WHOLE, m=x)
        candidate.run(PROMPT, [[1]]).forward(0, WHOLE, m=("a sparse tensor", ""))
        row = only(golden, candidate)
        assert (row["verdict"], row["reason"]) == (
            Verdict.NOT_COMPUTABLE,
            "the candidate skipped it: a sparse tensor",
        )


class TestMasks:
    def test_a_mask_of_truth_values_against_an_additive_one(self, dumps):
        golden, candidate = dumps
        keep = torch.tensor([[[[True, False, False], [True, True, False], [True, True, True]]]])
        added = torch.zeros(1, 1, 3, 3).masked_fill(~keep, torch.finfo(torch.float32).min)
        param = {"param": "attention_mask"}
        axes = "row,-,pos,pos"
        golden.run(PROMPT, [[1]]).forward(0, WHOLE, **{"m__input.mask": (keep, axes, param)})
        candidate.run(PROMPT, [[1]]).forward(0, WHOLE, **{"m__input.mask": (added, axes, param)})
        assert only(golden, candidate)["verdict"] == "identical"

    def test_a_mask_that_hides_another_key_is_found(self, dumps):
        golden, candidate = dumps
        keep = torch.ones(1, 1, 3, 3, dtype=torch.bool)
        added = torch.zeros(1, 1, 3, 3)
        added[..., 2, 0] = -torch.inf
        param = {"param": "attention_mask"}
        axes = "row,-,pos,pos"
        golden.run(PROMPT, [[1]]).forward(0, WHOLE, **{"m__input.mask": (keep, axes, param)})
        candidate.run(PROMPT, [[1]]).forward(0, WHOLE, **{"m__input.mask": (added, axes, param)})
        assert only(golden, candidate)["verdict"] == Verdict.FAIL


class TestMissingPositions:
    """A candidate that was fed the last of three positions only, as after a cached prefix."""

    def compared(self, dumps, slot):
        golden, candidate = dumps
        x = ramp(1, 3, 2)
        name = f"m__{slot}"
        golden.run(PROMPT, [[1]]).forward(0, WHOLE, **{name: (x, "row,pos,-")})
        candidate.run(PROMPT, [[1]]).forward(0, [[2]], **{name: (x[:, 2:], "row,pos,-")})
        return compare(golden.reader(), candidate.reader())

    def test_an_output_that_lacks_some_is_no_pass(self, dumps):
        comparison = self.compared(dumps, "output")
        assert comparison.verdict == Verdict.UNMATCHED
        assert comparison.coverage["positions missing in outputs"] == 2

    def test_an_input_that_lacks_some_is_counted(self, dumps):
        comparison = self.compared(dumps, "input.0")
        assert comparison.verdict == Verdict.IDENTICAL
        assert comparison.coverage["positions missing"] == 2
