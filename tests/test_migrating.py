"""The script of docs/migrating-from-msit.md leaves the files that the page names."""

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from hf_dumper import DumpConfig, open_dump

PAGE = Path(__file__).parents[1] / "docs" / "migrating-from-msit.md"
TEXT = PAGE.read_text("utf-8")
(SCRIPT,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
(DIFF,) = re.findall(r"^```diff\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
ARGUMENTS = re.findall(r"^\| `(\w+=\S.*?)` \|", TEXT, re.MULTILINE)
NAMED = re.findall(r"^    (dump/msit_dump_\S*\.\w+)", TEXT, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("script")
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return folder


def test_it_leaves_the_files_that_the_page_names(folder):
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    assert len(NAMED) == 4
    for name in NAMED:
        pattern = re.sub(r"<\w+>", "*", name)
        assert [file for file in files if fnmatch(file, pattern)], name


def test_its_files_are_plain_tensors_of_two_tokens(folder):
    files = list(folder.rglob("*.pth"))
    assert {path.parents[1].name for path in files} == {"0", "1"}
    for path in files:
        assert isinstance(torch.load(path, weights_only=True), torch.Tensor)


def test_its_dump_is_whole(folder):
    with open_dump(folder / "dump") as reader:
        assert reader.run_info()["complete"]


def test_one_import_and_one_argument_are_what_changes():
    lines = [line for line in DIFF.splitlines() if line.startswith(("+", "-"))]
    assert len(lines) == 4
    assert lines[0].replace("-from msit_llm", "+from hf_dumper") == lines[1]
    assert lines[2][1:].replace(")", ', layout="msit")') == lines[3][1:]


def test_the_table_names_most_parameters():
    assert len(ARGUMENTS) == 9


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_every_parameter_is_taken_as_msit_writes_it(argument):
    eval(f"DumpConfig({argument})", {"DumpConfig": DumpConfig, "nn": torch.nn})
