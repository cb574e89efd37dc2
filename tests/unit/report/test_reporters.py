"""A comparison in files: what is in them, and that others can read them."""

import csv
import json
import math
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

from hf_dumper.core.verdicts import RESULT_SCHEMA, Divergence, Verdict
from hf_dumper.errors import ConfigError, DumpWriteError
from hf_dumper.report.junit import JUnitReporter
from hf_dumper.report.reporters import reporter_for, write_report
from hf_dumper.report.tables import CsvReporter, JsonReporter, ParquetReporter
from tests.comparisons import SNIPPET, compared, failed, pair, passed, token


def read_json(found, tmp_path):
    write_report(found, tmp_path / "r.json")
    return json.loads((tmp_path / "r.json").read_text("utf-8"))


def read_csv(found, tmp_path):
    write_report(found, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cases(found, tmp_path):
    """Return the test cases of the JUnit report by (class name, name)."""
    write_report(found, tmp_path / "r.xml")
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()[0]
    return {(case.get("classname"), case.get("name")): case for case in suite}


def only(case):
    """Return the one thing that a case says."""
    (child,) = case
    return child


# --- JSON -----------------------------------------------------------------------------------------


def test_json_has_the_verdict_and_the_divergence(tmp_path):
    facts = read_json(failed(), tmp_path)
    assert (facts["verdict"], facts["passed"]) == ("fail", False)
    assert facts["divergence"]["module"] == "model.layers.1.self_attn"
    assert facts["divergence"]["snippet"] == SNIPPET


def test_json_has_every_column_of_every_pair(tmp_path):
    facts = read_json(failed(), tmp_path)
    assert len(facts["results"]) == 5
    assert list(facts["results"][0]) == RESULT_SCHEMA.names


def test_json_has_metrics_of_the_users_own_by_name(tmp_path):
    found = compared(Verdict.PASS, [pair("m", extra=[("mine", 0.5)])])
    assert read_json(found, tmp_path)["results"][0]["extra"] == {"mine": 0.5}


def test_numbers_that_json_lacks_are_words(tmp_path):
    found = compared(Verdict.FAIL, [pair("m", golden_value=math.nan, max_rel=math.inf)])
    row = read_json(found, tmp_path)["results"][0]
    assert (row["golden_value"], row["max_rel"]) == ("nan", "inf")


# --- CSV and Parquet ------------------------------------------------------------------------------


def test_csv_has_pairs_and_what_has_no_partner(tmp_path):
    rows = read_csv(failed(), tmp_path)
    assert [row["side"] for row in rows] == ["both"] * 5 + ["golden"]
    assert (rows[-1]["module"], rows[-1]["verdict"]) == ("model.norm", "unmatched")


def test_csv_writes_a_shape_in_one_cell(tmp_path):
    assert read_csv(failed(), tmp_path)[0]["shape"] == "1x9x64"


def test_csv_has_a_column_for_each_metric_of_the_users_own(tmp_path):
    found = compared(Verdict.PASS, [pair("m", extra=[("mine", 0.5)]), pair("n")])
    assert [row["extra.mine"] for row in read_csv(found, tmp_path)] == ["0.5", ""]


def test_parquet_keeps_the_types(tmp_path):
    write_report(failed(), tmp_path / "r.parquet")
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.num_rows == 6
    assert table.schema.field("shape").type == RESULT_SCHEMA.field("shape").type


@pytest.mark.parametrize("name", ["r.json", "r.csv", "r.parquet", "r.xml"])
def test_an_empty_comparison_can_be_written(tmp_path, name):
    write_report(compared(Verdict.NOTHING), tmp_path / name)
    assert (tmp_path / name).stat().st_size > 0


# --- JUnit ----------------------------------------------------------------------------------------


def test_junit_has_a_case_per_module_and_token(tmp_path):
    found = compared(Verdict.PASS, [pair("m", "input.0"), pair("m"), pair("m", token=1)])
    assert [key for key in cases(found, tmp_path) if key[0] == "run 0.m"] == [
        ("run 0.m", "token 0"),
        ("run 0.m", "token 1"),
    ]


def test_a_failure_of_junit_names_the_slot_and_the_rule(tmp_path):
    case = cases(failed(), tmp_path)["run 0.model.layers.1.self_attn", "token 0"]
    assert only(case).tag == "failure"
    assert only(case).get("message") == "output.0: rel_l2 0.31 > 0.00001 (fp32)"


def test_the_first_case_of_junit_is_the_verdict(tmp_path):
    first = next(iter(cases(failed(), tmp_path).values()))
    assert only(first).get("message") == "FAIL"
    assert "channels 64..127 negated" in only(first).text


@pytest.mark.parametrize(
    "verdict",
    [Verdict.WARN, Verdict.NOTHING, Verdict.UNMATCHED, Verdict.INPUTS, Verdict.NOT_COMPUTABLE],
)
def test_no_verdict_but_a_good_one_passes_in_junit(tmp_path, verdict):
    first = next(iter(cases(compared(verdict), tmp_path).values()))
    assert only(first).tag == "failure"


def test_a_pass_of_junit_has_no_failure(tmp_path):
    assert [list(case) for case in cases(passed(), tmp_path).values()] == [[]] * 5


def test_what_could_not_be_judged_is_skipped_in_junit(tmp_path):
    found = compared(Verdict.PASS, [pair("m", verdict=Verdict.NOT_COMPUTABLE, reason="no values")])
    case = cases(found, tmp_path)["run 0.m", "token 0"]
    assert only(case).tag == "skipped"
    assert only(case).get("message") == "not computable: no values"


def test_a_warning_is_told_in_the_output_of_junit(tmp_path):
    found = compared(Verdict.WARN, [pair("m", verdict=Verdict.WARN, rule="rel_l2 2 > 1")])
    case = cases(found, tmp_path)["run 0.m", "token 0"]
    assert (only(case).tag, only(case).text) == ("system-out", "output: warn: rel_l2 2 > 1")


def test_a_token_that_diverged_fails_in_junit(tmp_path):
    found = compared(Verdict.FAIL, tokens=[token(3, 5, 6, "diverged", reason="margin 9 ULP")])
    case = cases(found, tmp_path)["run 0.tokens", "row 0 token 3"]
    assert only(case).get("message") == "margin 9 ULP"


def test_junit_counts_what_it_holds(tmp_path):
    write_report(failed(), tmp_path / "r.xml")
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()[0]
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "skipped")}
    assert counts == {"tests": 9, "failures": 4, "skipped": 1}


NASTY = "\x1b[31m<&>\"']]>\uffff\U0001f600 " + "".join(map(chr, range(32)))
LONE = "\udc80"
"""Half of a character: how Python gives a byte of a file name that is no text."""


def nasty():
    divergence = Divergence(NASTY, NASTY, 0, 0, 0, "source", (NASTY + LONE,), snippet=NASTY)
    bad = pair(NASTY, NASTY, Verdict.FAIL, rule=NASTY)
    return compared(Verdict.FAIL, [bad], divergence=divergence, golden=NASTY + LONE)


def test_any_character_makes_well_formed_xml(tmp_path):
    assert len(cases(nasty(), tmp_path)) == 2


def test_any_character_is_in_json_as_it_was(tmp_path):
    facts = read_json(nasty(), tmp_path)
    assert (facts["golden"], facts["results"][0]["module"]) == (NASTY + LONE, NASTY)


# --- which format ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("r.json", JsonReporter),
        ("r.csv", CsvReporter),
        ("r.parquet", ParquetReporter),
        ("r.xml", JUnitReporter),
    ],
)
def test_the_ending_chooses_the_format(tmp_path, name, kind):
    assert isinstance(reporter_for(tmp_path / name), kind)


def test_the_longest_ending_wins(tmp_path):
    assert type(reporter_for(tmp_path / "r.msit.csv")).__name__ == "MsitReporter"


def test_an_unknown_ending_is_an_error_that_lists_the_known(tmp_path):
    with pytest.raises(ConfigError, match=r"'.*r.pdf' what kind of report.* Known: .*'json'"):
        reporter_for(tmp_path / "r.pdf")


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(DumpWriteError, match=r"Cannot write .*: No such file or directory"):
        write_report(passed(), tmp_path / "nope" / "r.json")
