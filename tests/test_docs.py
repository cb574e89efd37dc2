"""Every Python block of the documentation runs; a block that cannot says why on its fence."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_dumper import DEMO_MODEL, DumpConfig, DumpingModel

ROOT = Path(__file__).parents[1]
FORMAT = ROOT / "docs" / "format.md"  # its reader takes an argument: the tests below run it
PAGES = sorted([ROOT / "README.md", *(p for p in (ROOT / "docs").glob("*.md") if p != FORMAT)])
FENCE = re.compile(r"^```python([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

BLOCKED = "import sys; sys.modules['hf_dumper'] = None\n"
"""First line of an interpreter that cannot import the package."""


def blocks(page):
    return [(note.strip(), code) for note, code in FENCE.findall(page.read_text("utf-8"))]


def run(code, folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page, tmp_path):
    runnable = [code for note, code in blocks(page) if not note.startswith("cannot run:")]
    if not runnable:
        return
    result = run("\n".join(runnable), tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    path = tmp_path_factory.mktemp("format") / "dump"
    model = DumpingModel.from_pretrained(DEMO_MODEL, dump_config=DumpConfig(path))
    ids = model.dummy_inputs["input_ids"]
    model.generate(ids, max_new_tokens=1)
    model.dump.close()
    return path


def test_the_reader_of_the_format_page_reads_a_dump_without_the_package(dump, tmp_path):
    ((_, code),) = blocks(FORMAT)
    result = run(BLOCKED + code, tmp_path, str(dump))
    assert result.stdout.startswith("torch.Size([3, 5, "), result.stderr


def test_the_blocked_interpreter_cannot_import_the_package(tmp_path):
    assert "ModuleNotFoundError" in run(BLOCKED + "import hf_dumper", tmp_path).stderr


def test_the_reader_of_the_format_page_is_about_fifteen_lines():
    ((_, code),) = blocks(FORMAT)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
