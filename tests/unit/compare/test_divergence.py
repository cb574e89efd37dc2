"""Which module a table of verdicts blames."""

import pytest

from hf_dumper.compare.divergence import find_divergence, from_findings
from hf_dumper.core.verdicts import UNMATCHED_SCHEMA, Finding, Verdict
from tests.unit.compare.tables import result, results

NOTHING_ALONE = UNMATCHED_SCHEMA.empty_table()
GOOD, BAD, WARN = Verdict.PASS, Verdict.FAIL, Verdict.WARN


def call(module, seq, inputs, outputs, **fields):
    """Return the rows of a call whose (seq_in, seq_out) are `seq`, in order of completion."""
    where = {"seq_in": seq[0], "seq_out": seq[1], "rule": "a rule", **fields}
    rows = [result(module, f"input.{i}", verdict=v, **where) for i, v in enumerate(inputs)]
    return rows + [result(module, f"output.{i}", verdict=v, **where) for i, v in enumerate(outputs)]


def attention(q=GOOD, o_input=GOOD, o_output=GOOD, output=GOOD, mask=GOOD):
    """Return self_attn [0, 5] with q_proj [1, 2] and o_proj [3, 4] inside."""
    return [
        *call("attn.q_proj", (1, 2), [GOOD], [q]),
        *call("attn.o_proj", (3, 4), [o_input], [o_output]),
        *call("attn", (0, 5), [GOOD, mask], [output]),
    ]


def found(rows, unmatched=NOTHING_ALONE):
    answer = find_divergence(results(*rows), unmatched)
    return None if answer is None else (answer[0].kind, answer[0].module)


class TestSource:
    def test_nothing_bad_is_no_divergence(self):
        assert found(attention()) is None

    def test_a_child_is_named_before_its_parent(self):
        rows = attention(q=BAD, o_input=BAD, o_output=BAD, output=BAD)
        assert found(rows) == ("source", "attn.q_proj")

    def test_what_happens_between_children_is_functional(self):
        rows = attention(o_input=BAD, o_output=BAD, output=BAD)
        assert found(rows) == ("functional", "attn")

    def test_a_child_that_heals_its_bad_input_is_not_blamed(self):
        assert found(attention(o_input=BAD, output=BAD)) == ("functional", "attn")

    def test_a_warning_at_the_input_makes_a_suspect(self):
        rows = [*call("norm", (0, 1), [GOOD], [WARN]), *call("mlp", (2, 3), [WARN], [BAD])]
        answer, _ = find_divergence(results(*rows), NOTHING_ALONE)
        assert (answer.module, answer.suspects) == ("mlp", ("norm",))

    def test_an_input_that_could_not_be_judged_leaves_it_open(self):
        rows = attention(o_input=BAD, o_output=BAD, output=BAD, mask=Verdict.NOT_COMPUTABLE)
        answer, _ = find_divergence(results(*rows), NOTHING_ALONE)
        assert (answer.kind, answer.module) == ("first failing", "attn")
        assert "not checked: input.1" in answer.evidence

    def test_an_input_without_partner_leaves_it_open(self):
        alone = NOTHING_ALONE.schema.empty_table().to_pylist()
        alone.append(
            {"side": "golden", "run": 0, "forward": 0, "token": 0, "module": "attn"}
            | {"slot": "input.mask", "call": 0, "op": "", "verdict": "unmatched", "reason": ""}
        )
        table = UNMATCHED_SCHEMA.empty_table().from_pylist(alone, UNMATCHED_SCHEMA)
        rows = attention(o_input=BAD, o_output=BAD, output=BAD)
        assert found(rows, table) == ("first failing", "attn")

    def test_without_inputs_it_is_the_first_failing_one(self):
        rows = [row for row in attention(q=BAD, output=BAD) if "input" not in row["slot"]]
        assert found(rows) == ("first failing", "attn.q_proj")

    @pytest.mark.parametrize("verdict", [Verdict.NON_FINITE, Verdict.SHAPE])
    def test_every_bad_verdict_counts(self, verdict):
        assert found(attention(q=verdict)) == ("source", "attn.q_proj")

    def test_the_second_call_of_a_module_is_judged_by_its_own_inputs(self):
        rows = [
            *call("shared", (0, 1), [GOOD], [GOOD]),
            *call("other", (2, 3), [GOOD], [BAD]),
            *call("shared", (4, 5), [BAD], [BAD], call=1),
        ]
        assert found(rows) == ("source", "other")

    def test_records_before_it_that_were_not_judged_are_counted(self):
        rows = [
            *call("a", (0, 1), [GOOD], [Verdict.NOT_COMPUTABLE]),
            *call("b", (2, 3), [GOOD], [BAD]),
        ]
        answer, number = find_divergence(results(*rows), NOTHING_ALONE)
        assert (answer.unchecked, number) == (1, 3)


class TestInputs:
    def test_what_the_model_was_given_is_no_fault_of_a_module(self):
        rows = [*call("embed", (1, 2), [BAD], [BAD]), *call("root", (0, 3), [BAD], [BAD])]
        assert found(rows) == ("inputs", "root")

    def test_a_fault_in_an_earlier_forward_comes_first(self):
        rows = [
            *call("embed", (0, 1), [GOOD], [BAD]),
            *call("root", (2, 5), [BAD], [BAD], forward=1),
        ]
        assert found(rows) == ("source", "embed")

    def test_weights_are_named_in_order_of_use(self):
        table = results(result("b.proj"), result("a.proj"))
        findings = [Finding(f"weight {n}.proj.weight", "1", "2", "differ") for n in "ab"]
        answer = from_findings(findings, table)
        assert (answer.kind, answer.module, answer.slot) == ("weights", "b.proj", "weight.weight")

    def test_other_inputs_come_before_weights(self):
        findings = [
            Finding("weight a.weight", "1", "2", "differ"),
            Finding("config eps", 1, 2, "eps is 1 against 2"),
        ]
        answer = from_findings(findings, results())
        assert (answer.kind, answer.slot) == ("inputs", "config eps")
