"""Every Python block and every command of the documentation runs, in both languages.

A block that cannot run says why on its fence.
"""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_dumper import DEMO_MODEL, DumpConfig, DumpingModel
from hf_dumper.cli import main
from hf_dumper.cli.failures import DONE, FAILED

ROOT = Path(__file__).parents[1]
FORMAT = ROOT / "docs" / "format.md"  # its reader takes an argument: the tests below run it
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PROMPTS = ROOT / "docs" / "prompts.md"
PAGES = sorted([*READMES, *(p for p in (ROOT / "docs").glob("*.md") if p != FORMAT)])
FENCE = re.compile(r"^```python([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

COMMAND = re.compile(r"^    (?:\$ )?((?:hf-dumper|make) .*)$", re.MULTILINE)

PLACES = {
    "MODEL": "demo",
    "DUMP": "d",
    "GOLDEN": "d",
    "CANDIDATE": "candidate",
    "KEPT": "kept",
    "...": "You may copy",
}
"""What the words that a reader replaces are replaced by."""

JUDGING = ("compare", "judge")
"""Commands whose answer may be no."""

BLOCKED = "import sys; sys.modules['hf_dumper'] = None\n"
"""First line of an interpreter that cannot import the package."""


def blocks(page):
    return [(note.strip(), code) for note, code in FENCE.findall(page.read_text("utf-8"))]


def commands(page):
    """Return the commands of a page without what is said about them."""
    return [line.partition("  #")[0].strip() for line in COMMAND.findall(page.read_text("utf-8"))]


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


# --- the two READMEs ------------------------------------------------------------------------------


def test_both_readmes_have_the_same_commands():
    english, chinese = map(commands, READMES)
    assert english == chinese
    assert len(english) > 10


def test_both_readmes_have_the_same_code_but_for_comments():
    english, chinese = ([ast.dump(ast.parse(code)) for _, code in blocks(p)] for p in READMES)
    assert english == chinese
    assert english


def test_both_readmes_have_the_same_structure_and_name_each_other():
    english, chinese = (page.read_text("utf-8") for page in READMES)
    heads, linked = (
        [re.findall(pattern, text, re.MULTILINE) for text in (english, chinese)]
        for pattern in (r"^#+(?= )", r"\]\((docs/[^)]+|CHANGELOG.md)\)")
    )
    assert heads[0] == heads[1]
    assert linked[0] == linked[1]
    assert "](README.zh-CN.md)" in english
    assert "](README.md)" in chinese


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Give the commands what they read, in a working directory of their own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "You may copy"}')
    (tmp_path / "questions.csv").write_text("question,answer\nMay I?,yes\nWhy?,\nHow?,so\n")
    (tmp_path / "limits.toml").write_text("warn = 3.0")
    return tmp_path


def said_to_run(command, folder):
    """Return the arguments of a command, places filled in; dumps go where later ones look."""
    _, *arguments = (PLACES.get(word, word) for word in shlex.split(command))
    if arguments[0] == "run" and "--dump" not in arguments:
        names = ("d", *(f"other{i}" for i in range(99)))  # rows of one source never join another's
        arguments += ["--dump", next(name for name in names if not (folder / name).exists())]
    if "broken" in arguments and not (folder / "broken").exists():
        shutil.copytree(folder / "golden", folder / "broken")  # which is a good one here
    return arguments


@pytest.mark.parametrize("page", [*READMES, PROMPTS], ids=lambda page: page.name)
def test_every_command_of_a_page_runs(page, files, capfd):
    for command in commands(page):
        if command.startswith("make "):
            assert f"\n{command.split()[1]}: " in (ROOT / "Makefile").read_text("utf-8")
            continue
        arguments = said_to_run(command, files)
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        allowed = (DONE, FAILED) if arguments[0] in JUDGING else (DONE,)
        assert ended.value.code in allowed, (command, capfd.readouterr().err)


def test_a_command_that_does_not_run_would_be_found(files):
    with pytest.raises(SystemExit) as ended:
        main(said_to_run("hf-dumper inspect DUMP --novelty", files))
    assert ended.value.code not in (DONE, FAILED)
