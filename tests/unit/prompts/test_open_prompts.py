"""Data sets of every kind as prompts: which rows, under which numbers, and made of which cells."""

import json
import tempfile
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from hf_dumper.errors import PromptError
from hf_dumper.prompts import Selection, load_prompts, open_prompts

TEN = [f"p{i}" for i in range(10)]


def rows(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


def numbered(source, *chosen, **options):
    return [
        (row.number, row.taken().text)
        for row in open_prompts(source, Selection(*chosen, **options))
    ]


@pytest.fixture
def ten(tmp_path):
    path = tmp_path / "ten.jsonl"
    path.write_text(rows(*({"prompt": text} for text in TEN)))
    return path


@pytest.fixture
def splits():
    other = Dataset.from_dict({"prompt": ["t0", "t1"]})
    return DatasetDict(train=Dataset.from_dict({"prompt": TEN}), test=other)


@pytest.fixture
def saved(tmp_path, splits):
    splits.save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "folder"
    place.mkdir()
    (place / "train.jsonl").write_text(rows(*({"prompt": text} for text in TEN)))
    (place / "test.jsonl").write_text(rows({"prompt": "t0"}, {"prompt": "t1"}))
    return place


# --- which rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (None, range(10)),
        ("train", range(10)),
        ("train[1:3]", [1, 2]),
        ("train[8:]", [8, 9]),
        ("train[:2]", [0, 1]),
        ("train[8:100]", [8, 9]),
    ],
)
def test_a_slice_keeps_the_numbers_of_its_rows(ten, split, streaming, expected):
    found = numbered(ten, split=split, streaming=streaming)
    assert found == [(i, f"p{i}") for i in expected]


@pytest.mark.parametrize(
    ("split", "expected"), [("train[-2:]", [8, 9]), ("train[:20%]+train[5:6]", [0, 1, 5])]
)
def test_slices_are_what_datasets_says(ten, split, expected):
    assert [number for number, _ in numbered(ten, split=split)] == expected


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["saved", "folder"])
def test_a_folder_has_splits(kind, streaming, request):
    source = request.getfixturevalue(kind)
    found = numbered(source, split="test", streaming=streaming)
    assert found == [(0, "t0"), (1, "t1")]
    with pytest.raises(PromptError, match=r"Which split .*--split\).*'test'"):
        open_prompts(source, Selection(streaming=streaming))


def test_a_single_saved_data_set_needs_no_split(tmp_path):
    Dataset.from_dict({"prompt": TEN}).save_to_disk(tmp_path / "one")
    assert numbered(tmp_path / "one") == list(enumerate(TEN))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "x\n\ny\n"),
        ("a.csv", "id,prompt\n5,x\n,\n6,y\n"),
        ("a.json", json.dumps([{"prompt": "x"}, {"prompt": ""}, {"prompt": "y"}])),
    ],
)
def test_a_blank_row_keeps_its_number(tmp_path, name, content, streaming):
    (tmp_path / name).write_text(content)
    found = open_prompts(tmp_path / name, Selection(streaming=streaming))
    assert [(r.number, r.prompt.text) for r in found if r.prompt] == [(0, "x"), (2, "y")]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_limit_ends_and_a_seed_shuffles_the_same_way_each_time(ten, streaming):
    chosen = {"streaming": streaming, "limit": 4}
    first = numbered(ten, shuffle=1, **chosen)
    assert first == numbered(ten, shuffle=1, **chosen) != numbered(ten, shuffle=2, **chosen)
    assert sorted(first) != first
    assert all(text == f"p{number}" for number, text in first)
    assert len(numbered(ten, **chosen)) == 4


def test_a_stream_is_shuffled_across_its_buffer(ten, monkeypatch):
    monkeypatch.setattr("hf_dumper.prompts.table.BUFFER", 3)
    found = numbered(ten, streaming=True, shuffle=0)
    assert sorted(found) == list(enumerate(TEN)) != found


def test_the_count_is_known_but_of_a_stream(ten):
    counts = [
        open_prompts(ten, Selection(**chosen)).count
        for chosen in (
            {},
            {"limit": 3},
            {"limit": 30},
            {"split": "train[1:3]"},
            {"streaming": True},
        )
    ]
    assert counts == [10, 3, 10, 2, None]


def test_rows_can_be_read_twice(ten):
    found = open_prompts(ten, Selection(streaming=True, limit=2))
    assert list(found) == list(found) != []


def test_a_copy_of_a_file_ends_with_its_rows(ten, tmp_path, monkeypatch):
    place = tmp_path / "t"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    found = open_prompts(ten)
    assert [p.name.startswith("hf_dumper_prompts_") for p in place.iterdir()] == [True]
    del found
    assert list(place.iterdir()) == []


# --- made of which cells --------------------------------------------------------------------------


def templated(path, template):
    return [prompt.text for prompt in load_prompts(path, template=template)]


def test_a_template_takes_several_columns(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(rows({"q": "why", "n": 3, "a": ["x", "y"]}))
    assert templated(path, "{n}. Q: {q}{{}}\nA: {a[1]}") == ["3. Q: why{}\nA: y"]


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("Q: {question}", r"no column 'question'\. .*'q', 'n', 'a'"),
        ("Q: {q.__class__}", r"no column 'q.__class__'"),
        ("Q: {}", "no column ''"),
        ("Q: {q", "cannot be read: .*Write {{"),
        ("Q", r"names no column, such as \{q\}"),
        ("{a}", "Row 0 .*does not fit the template: list .*pick a part"),
        ("{a[7]}", "Row 0 .*does not fit the template"),
        ("{n:%}{n:x}{q:d}", "Row 0 .*does not fit the template"),
    ],
)
def test_a_template_that_does_not_fit_is_one_line(tmp_path, template, match):
    path = tmp_path / "a.jsonl"
    path.write_text(rows({"q": "why", "n": 3, "a": ["x"]}))
    with pytest.raises(PromptError, match=match) as error:
        load_prompts(path, template=template)
    assert "\n" not in str(error.value)


def test_an_empty_cell_of_a_template_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_text(rows({"q": "x"}, {"q": None}))
    good, bad = open_prompts(tmp_path / "a.jsonl", template="{q}")
    assert (good.prompt.text, bad.prompt) == ("x", None)
    assert "Row 1" in str(bad.error)


@pytest.mark.parametrize("streaming", [False, True])
def test_messages_have_only_the_fields_of_their_own_row(tmp_path, streaming):
    call = {"name": "f", "arguments": {"city": "x"}}
    first = [{"role": "assistant", "content": "a", "tool_calls": [{"function": call}]}]
    other = {"name": "g", "arguments": {"day": 3}}
    second = [{"role": "assistant", "content": "b", "tool_calls": [{"function": other}]}]
    path = tmp_path / "a.jsonl"
    path.write_text(rows({"messages": first}, {"messages": second}))
    found = open_prompts(path, Selection(streaming=streaming), chat=True)
    assert [list(row.taken().messages) for row in found] == [first, second]


@pytest.mark.parametrize("template", [None, "{q}"])
def test_a_row_that_lacks_the_column_is_no_prompt(tmp_path, template):
    path = tmp_path / "a.jsonl"
    path.write_text(rows({"q": "x"}, {"other": 1}))
    chosen = Selection(streaming=True)
    column = None if template else "q"
    good, bad = open_prompts(path, chosen, column=column, template=template)
    assert (good.taken().text, bad.prompt) == ("x", None)
    assert "nothing in column 'q'" in str(bad.error)


def test_a_column_and_a_template_contradict_each_other(ten):
    with pytest.raises(PromptError, match="not both"):
        open_prompts(ten, column="prompt", template="{prompt}")


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "match"),
    [
        ({"split": "trian"}, "Cannot take split 'trian' .*Splits: 'train'"),
        ({"split": "train[1:"}, "Unrecognized instruction"),
        ({"split": "train[0:3]+train[2:4]"}, "names a row twice"),
        ({"split": "train[3:3]"}, "holds no rows"),
        ({"split": "trian", "streaming": True}, "Cannot take split 'trian'"),
        ({"split": "train[:10%]", "streaming": True}, "one slice by numbers"),
        ({"split": "train[-2:]", "streaming": True}, "one slice by numbers"),
        ({"subset": "main"}, "not on the hub"),
    ],
)
def test_a_selection_that_cannot_be_meant_is_one_line(ten, chosen, match):
    with pytest.raises(PromptError, match=match) as error:
        open_prompts(ten, Selection(**chosen))
    assert "\n" not in str(error.value)


def test_rows_of_several_splits_have_no_one_number(saved):
    with pytest.raises(PromptError, match="several splits share"):
        open_prompts(saved, Selection(split="train+test"))


def test_a_hub_out_of_reach_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("promts.jsonl").touch()
    for name in ("owner/name", "prompts"):
        with pytest.raises(PromptError, match=f"Cannot read '{name}': Couldn't reach.*Nor is"):
            open_prompts(name)


def test_a_stream_that_breaks_ends_with_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(rows({"prompt": "x"}) + "{")
    with pytest.raises(PromptError, match=r"Cannot read .*a\.jsonl: "):
        list(open_prompts(path, Selection(streaming=True)))
