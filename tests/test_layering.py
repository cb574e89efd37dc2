"""Imports point towards row 0 of the layer table, never away from it and never sideways."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_dumper

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_dumper"

RANKS = {
    "errors": 0,
    "core": 1,
    "config": 2,
    "hub": 2,
    "launch": 2,
    "capture": 3,
    "store": 3,
    "compare": 3,
    "prompts": 3,
    "foreign": 4,
    "models": 4,
    "engines": 4,
    "report": 4,
    "session": 5,
    "comparison": 5,
    "publish": 5,
    "model": 6,
    "runner": 6,
    "diagnose": 6,
    "testing": 6,
    "badcases": 7,
    "cli": 8,
    "__main__": 9,
}
"""The table of the architecture page. A new module gets its row there and here."""


def absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """Return the dotted name that `from X import ...` in `module` refers to."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def imports(source: str, module: str, *, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything imported, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = absolute(node, module, is_package=is_package)
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Return what is wrong with the imports of a module of hf_dumper, one line each."""
    here = module.split(".")[1]
    if here not in RANKS:
        return [f"{module}: {here!r} has no rank; give it one in the table"]
    found = []
    for line, name in imports(source, module, is_package=is_package):
        parts = name.split(".")
        if parts[0] != "hf_dumper" or name == "hf_dumper.__version__":
            continue
        there = parts[1] if len(parts) > 1 else ""
        if there not in RANKS:
            found.append(f"{module}:{line} imports {name}, which is no module with a rank")
        elif there != here and RANKS[there] >= RANKS[here]:
            ranks = f"rank {RANKS[here]} must not reach rank {RANKS[there]}"
            found.append(f"{module}:{line} imports {name}: {ranks}")
    return found


def private_uses(source: str, name: str) -> list[str]:
    """Return what a script uses of hf_dumper besides its public names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            used = [a.name for a in node.names if a.name.startswith("hf_dumper.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_dumper."):
            used = [str(node.module)]
        elif isinstance(node, ast.ImportFrom) and node.module == "hf_dumper":
            used = [a.name for a in node.names if a.name not in hf_dumper.__all__]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "hf_dumper":
            used = [node.attr] if node.attr not in hf_dumper.__all__ else []
        else:
            continue
        found += [f"{name}:{node.lineno} uses {what}, which is not public" for what in used]
    return found


def test_imports_point_towards_row_0():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        dotted = path.relative_to(ROOT).with_suffix("").parts
        is_package = dotted[-1] == "__init__"
        module = ".".join(dotted[:-1] if is_package else dotted)
        if module != "hf_dumper":  # gathers the public names, so it reaches every layer
            found += violations(path.read_text("utf-8"), module, is_package=is_package)
    assert not found, "\n".join(found)


def test_every_ranked_name_that_exists_is_a_module():
    present = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))
    }
    assert present - {"__init__"} <= RANKS.keys()


def test_recipes_use_public_names_only():
    paths = sorted((ROOT / "recipes").rglob("*.py"))
    found = [use for path in paths for use in private_uses(path.read_text("utf-8"), path.name)]
    assert paths
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hf_dumper.capture.taps", "from hf_dumper.store import open_dump"),
        ("hf_dumper.capture.taps", "import hf_dumper.compare.align"),
        ("hf_dumper.capture.taps", "from hf_dumper import session"),
        ("hf_dumper.capture.taps", "from ..cli import main"),
        ("hf_dumper.core.types", "def late():\n    from hf_dumper.config import DumpConfig"),
        ("hf_dumper.core.types", "if TYPE_CHECKING:\n    from hf_dumper.model import DumpingModel"),
        ("hf_dumper.cli.run", "from hf_dumper import DumpConfig"),
        ("hf_dumper.cli.run", "import hf_dumper"),
        ("hf_dumper.cli.run", "from hf_dumper.novelty import thing"),
        ("hf_dumper.novelty", ""),
    ],
)
def test_a_wrong_import_is_found(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source", "is_package"),
    [
        ("hf_dumper.capture.taps", "from hf_dumper.core.types import Tick", False),
        ("hf_dumper.capture.taps", "from .clock import TokenClock", False),
        ("hf_dumper.capture", "from .clock import TokenClock", True),
        ("hf_dumper.capture.taps", "from ..errors import CaptureError", False),
        ("hf_dumper.store", "import torch, hf_dumper.errors", True),
        ("hf_dumper.store.layout", "from hf_dumper import __version__", False),
    ],
)
def test_a_right_import_passes(module, source, is_package):
    assert violations(source, module, is_package=is_package) == []


@pytest.mark.parametrize(
    "source",
    [
        "from hf_dumper.core.types import Tick",
        "import hf_dumper.session",
        "from hf_dumper import session",
        "import hf_dumper\nhf_dumper.core",
    ],
)
def test_a_private_name_in_a_recipe_is_found(source):
    assert len(private_uses(source, "recipe.py")) == 1


def test_a_public_name_in_a_recipe_passes():
    source = "import hf_dumper\nfrom hf_dumper import DumpConfig\nhf_dumper.seeded(1)"
    assert private_uses(source, "recipe.py") == []
