"""Results of evaluations: read by value, nothing guessed."""

import json

import pytest

from hf_dumper.badcases import Columns, find_cases, read_results
from hf_dumper.errors import PromptError


@pytest.fixture
def write(tmp_path):
    """Return a function that writes rows as .csv or .jsonl and returns the path."""

    def write(name, *rows):
        path = tmp_path / name
        if path.suffix == ".csv":
            path.write_text("\n".join(["id,prompt,answer,passed", *rows]) + "\n")
        else:
            path.write_text("\n".join(map(json.dumps, rows)) + "\n")
        return path

    return write


def row(name, passed, prompt="p", **more):
    return {"id": name, "prompt": prompt, "answer": "a", "passed": passed, **more}


@pytest.mark.parametrize("word", ["true", "True", "TRUE", "1", "yes", "YES", "Pass", "passed"])
def test_passed_is_read_in_any_case(write, word):
    rows = read_results(write("r.csv", f"x,p,a,{word}")).rows
    assert rows["x"].passed is True


@pytest.mark.parametrize("word", ["false", "False", "0", "no", "No", "FAIL", "failed"])
def test_not_passed_is_read_in_any_case(write, word):
    assert read_results(write("r.csv", f"x,p,a,{word}")).rows["x"].passed is False


@pytest.mark.parametrize(("value", "meant"), [(True, True), (0, False), (1.0, True), ("no", False)])
def test_passed_of_json_may_have_any_of_the_types(write, value, meant):
    assert read_results(write("r.jsonl", row("x", value))).rows["x"].passed is meant


@pytest.mark.parametrize("word", ["", "maybe", "2", "t", "passes"])
def test_any_other_word_is_an_error_that_names_the_row(write, word):
    path = write("r.csv", "x,p,a,yes", f"y,p,a,{word}")
    with pytest.raises(PromptError, match=f"Row 1 of .*{word!r} in column 'passed'"):
        read_results(path)


@pytest.mark.parametrize("value", [None, 2, 0.5])
def test_any_other_value_is_an_error(write, value):
    with pytest.raises(PromptError, match="'passed'; it must be one of true, 1"):
        read_results(write("r.jsonl", row("x", value)))


def test_ids_are_the_same_by_value(write):
    golden = read_results(write("g.csv", "7,p,a,yes", "08,p,a,yes"))
    candidate = read_results(write("c.jsonl", row(7, False), row(8, False)))
    found = find_cases(golden, candidate)
    assert [case.id for case in found.cases] == ["7"]
    assert (found.only_golden, found.only_candidate) == (("08",), ("8",))


def test_a_blank_id_is_an_error(write):
    with pytest.raises(PromptError, match="an id is a text or a number"):
        read_results(write("r.csv", ",p,a,yes"))


def test_columns_have_the_names_that_are_given(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("nr,question,said,ok\n1,p,a,yes\n")
    rows = read_results(path, Columns("nr", "question", "said", "ok")).rows
    assert (rows["1"].prompt.text, rows["1"].answer, rows["1"].passed) == ("p", "a", True)


def test_a_missing_column_is_an_error_that_lists_those_there(write):
    with pytest.raises(PromptError, match=r"no column 'ok' for the passed\. .*'passed'"):
        read_results(write("r.csv", "1,p,a,yes"), Columns(passed="ok"))


@pytest.mark.parametrize("text", ["", "id,prompt,answer,passed\n"])
def test_a_file_of_nothing_is_an_error(tmp_path, text):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(PromptError, match="holds no rows"):
        read_results(tmp_path / "r.csv")


def test_an_answer_of_numbers_is_an_error(write):
    with pytest.raises(PromptError, match="an answer is a text"):
        read_results(write("r.jsonl", row("x", True, answer=4)))


def test_a_conversation_is_a_prompt(write):
    said = [{"role": "user", "content": "hello"}]
    found = read_results(write("r.jsonl", row("x", True, prompt=said))).rows["x"].prompt
    assert found.shown == "hello"


def test_a_blank_prompt_is_an_error(write):
    with pytest.raises(PromptError, match="a prompt is a text or a list of messages"):
        read_results(write("r.jsonl", row("x", True, prompt=" ")))


def test_every_id_is_a_case_or_told(write):
    golden = [row(i, True) for i in "abcdd"] + [row("e", True)]
    candidate = [row("a", True), row("b", False), row("c", False, prompt="other"), row("f", True)]
    candidate += [row("d", False), row("g", True), row("g", True)]
    sides = write("g.jsonl", *golden), write("c.jsonl", *candidate)
    found = find_cases(*map(read_results, sides))
    assert [case.id for case in found.cases] == ["b"]
    assert found.agreeing == 1
    assert found.other_prompts == ("c",)
    assert found.doubled == ("d", "g")
    assert (found.only_golden, found.only_candidate) == (("e",), ("f",))
    assert not found.is_whole


def test_both_directions_are_bad_cases(write):
    golden = read_results(write("g.jsonl", row("a", True), row("b", False)))
    candidate = read_results(write("c.jsonl", row("a", False), row("b", True)))
    found = find_cases(golden, candidate)
    assert [case.id for case in found.cases] == ["a", "b"]
    assert found.is_whole


def test_files_without_a_common_id_are_an_error(write):
    sides = write("g.jsonl", row("a", True)), write("c.jsonl", row("b", True))
    with pytest.raises(PromptError, match="No id of"):
        find_cases(*map(read_results, sides))


def test_a_byte_order_mark_and_line_breaks_inside_of_a_cell_are_read(tmp_path):
    path = tmp_path / "r.csv"
    path.write_bytes(b'\xef\xbb\xbfid,prompt,answer,passed\r\n007,"a\nb, ""q""",NA,true\r\n')
    (found,) = read_results(path).rows.values()
    assert (found.id, found.prompt.text, found.answer) == ("007", 'a\nb, "q"', "NA")


def test_two_columns_of_one_name_are_an_error(tmp_path):
    (tmp_path / "r.csv").write_text("id,prompt,answer,passed,passed\n1,p,a,yes,no\n")
    with pytest.raises(PromptError, match="several columns named 'passed'"):
        read_results(tmp_path / "r.csv")
