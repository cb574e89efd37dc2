"""The tree of exceptions, and what a user may catch."""

import inspect
import re

import pytest

from hf_dumper import errors
from hf_dumper.errors import DumpWarning, HFDumperError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass)]
ERRORS = [c for c in CLASSES if not issubclass(c, Warning)]
WARNINGS = [c for c in CLASSES if issubclass(c, Warning)]
STANDARD = {
    "ConfigError": ValueError,
    "NotYetError": NotImplementedError,
    "ModelError": ValueError,
    "UnsupportedGenerationError": NotImplementedError,
    "CaptureError": RuntimeError,
    "DumpNotFoundError": FileNotFoundError,
    "DumpFormatError": ValueError,
    "DumpIdentityError": ValueError,
    "DumpWriteError": OSError,
    "KeyNotFoundError": KeyError,
    "LaunchError": RuntimeError,
    "PromptError": ValueError,
}


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_is_ours(error):
    assert issubclass(error, HFDumperError)


@pytest.mark.parametrize("warning", WARNINGS)
def test_every_warning_is_ours(warning):
    assert issubclass(warning, DumpWarning)


@pytest.mark.parametrize("name", STANDARD)
def test_an_error_is_also_the_standard_one(name):
    assert issubclass(getattr(errors, name), STANDARD[name])


@pytest.mark.parametrize("cls", CLASSES)
def test_the_tree_in_the_docstring_shows_every_class(cls):
    assert re.search(rf"\b{cls.__name__}\b", errors.__doc__)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_class_hangs_in_the_tree_where_the_docstring_draws_it(cls):
    lines = errors.__doc__.splitlines()
    (at,) = (i for i, line in enumerate(lines) if re.search(rf"[─ ]{cls.__name__}\b", line))
    column = lines[at].index(cls.__name__)
    parents = [line for line in lines[:at] if len(line) > 4 and 0 <= start(line) < column]
    drawn = parents[-1].strip("│├└─ ").split()[0] if parents else None
    assert drawn in (None, *(base.__name__ for base in cls.__mro__[1:]), "::")


def start(line):
    found = re.search(r"[A-Z]", line)
    return found.start() if found and line.startswith("    ") else -1


@pytest.mark.parametrize("error", ERRORS)
def test_the_message_is_shown_as_it_is(error):
    assert str(error("No run 7.")) == "No run 7."


def test_a_key_error_without_a_message_is_empty():
    assert str(errors.KeyNotFoundError()) == ""
