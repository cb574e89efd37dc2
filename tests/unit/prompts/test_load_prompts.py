"""Files of prompts: what is read, and what is one clear line instead."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.utils import are_progress_bars_disabled, logging

from hf_dumper.errors import PromptError
from hf_dumper.prompts import load_prompts

CONVERSATION = [{"role": "user", "content": "hi"}]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file and returns its path."""

    def make(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def texts(prompts):
    return [prompt.text for prompt in prompts]


def rows(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


def test_every_line_of_a_text_is_a_prompt_but_blank_ones(write):
    assert texts(load_prompts(write("a.txt", "one\n\n two\nthree"))) == ["one", " two", "three"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps([{"prompt": "x"}, {"prompt": "y"}])),
        ("a.jsonl", rows({"prompt": "x"}, {"prompt": "y"})),
        ("a.csv", "n,prompt\n1,x\n2,y\n"),
        ("A.JSONL", rows({"prompt": "x"}, {"prompt": "y"})),
        ("odd [1] name*.jsonl", rows({"prompt": "x"}, {"prompt": "y"})),
    ],
)
def test_every_row_is_a_prompt(write, name, content):
    assert texts(load_prompts(write(name, content))) == ["x", "y"]


def test_parquet_is_read(tmp_path):
    pq.write_table(pa.table({"id": [5, 6], "question": ["x", "y"]}), tmp_path / "a.parquet")
    prompts = load_prompts(tmp_path / "a.parquet")
    assert [(p.id, p.text) for p in prompts] == [("5", "x"), ("6", "y")]


def test_rows_without_an_id_are_numbered(write):
    assert [p.id for p in load_prompts(write("a.txt", "x\ny\n"))] == ["0", "1"]


@pytest.mark.parametrize(
    ("row", "chat", "text"),
    [
        ({"prompt": "p", "text": "t", "messages": CONVERSATION}, True, "p"),
        ({"text": "t", "other": "o"}, False, "t"),
        ({"id": "7", "question": "q"}, False, "q"),
    ],
)
def test_the_column_is_found(write, row, chat, text):
    assert texts(load_prompts(write("a.jsonl", rows(row)), chat=chat)) == [text]


def test_conversations_are_taken_with_chat_and_have_no_empty_fields(write):
    longer = [*CONVERSATION, {"role": "user", "content": "b", "name": "z"}]
    path = write("a.jsonl", rows({"messages": CONVERSATION, "n": 1}, {"messages": longer, "n": 2}))
    assert [p.messages for p in load_prompts(path, chat=True)] == [CONVERSATION, longer]


def test_a_csv_keeps_every_cell_as_it_is_written(write):
    path = write("a.csv", '\ufeffprompt\nNA\n007\n"two\nlines, ""quoted"""\n')
    assert texts(load_prompts(path)) == ["NA", "007", 'two\nlines, "quoted"']


@pytest.mark.parametrize(
    ("name", "content", "options", "match"),
    [
        ("a.txt", "", {}, "holds no rows"),
        ("a.txt", "\n\n", {}, "holds no rows"),
        ("a.json", "[]", {}, "holds no rows"),
        ("a.txt", b"caf\xe9", {}, "Cannot read .*a.txt: 'utf-8' codec"),
        ("a.json", "[", {}, "Cannot read .*a.json: "),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt":\n', {}, "Cannot read .* in row 1"),
        ("a.parquet", "nonsense", {}, "Cannot read .*a.parquet: "),
        ("a.csv", "prompt\nHello, world\n", {}, "Put quotes around cells"),
        ("a.csv", "a,a\n1,2\n", {}, "several columns named 'a'"),
        ("a.xlsx", "x", {}, "Known: .txt, .json, .jsonl, .csv, .parquet"),
        ("a.jsonl", rows({"a": "x", "b": "y"}), {}, r"--column\). Columns: 'a', 'b'"),
        ("a.jsonl", rows({"prompt": "x"}), {"column": "promt"}, "Did you mean 'prompt'"),
        ("a.jsonl", rows({"prompt": "x"}, {"prompt": 3}), {}, "Row 1 .* holds int '3'"),
        ("a.jsonl", rows({"prompt": "x"}, {"prompt": None}), {}, "Row 1 .* holds nothing"),
        ("a.jsonl", rows({"prompt": " "}), {}, "Row 0 .* holds a blank text"),
        ("a.jsonl", rows({"messages": CONVERSATION}), {}, r"need chat=True \(--chat\)"),
        ("a.jsonl", rows({"prompt": [1]}), {"chat": True}, "a text or a list of messages"),
    ],
)
def test_what_cannot_be_read_is_one_line(write, name, content, options, match):
    path = write(name, content)
    with pytest.raises(PromptError, match=match) as error:
        load_prompts(path, **options)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_its_neighbours(write, tmp_path):
    write("prompts.jsonl", "")
    with pytest.raises(PromptError, match=r"no file .*Did you mean 'prompts.jsonl'"):
        load_prompts(tmp_path / "promts.jsonl")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(PromptError, match="is a folder"):
        load_prompts(tmp_path)


def test_reading_says_nothing_and_leaves_the_settings_of_datasets(write, capfd):
    before = logging.get_verbosity(), are_progress_bars_disabled()
    load_prompts(write("a.jsonl", rows({"prompt": "x"})))
    with pytest.raises(PromptError):
        load_prompts(write("b.jsonl", "{"))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), are_progress_bars_disabled()) == before


def test_a_changed_file_is_read_anew(write):
    assert texts(load_prompts(write("a.txt", "old"))) == ["old"]
    assert texts(load_prompts(write("a.txt", "new"))) == ["new"]
