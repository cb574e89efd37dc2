"""Prints the page on which architectures are covered; with `--examine`, runs all checks first."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import contextlib
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.architectures import kept
from tests.architectures.examine import examine
from tests.architectures.models import FAMILIES, architectures
from tests.architectures.page import page
from tests.generation import coverage


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.architectures", description=__doc__)
    parser.add_argument("--examine", nargs="*", metavar="FAMILY", choices=[*FAMILIES])
    chosen = parser.parse_args().examine
    if chosen is not None:
        with contextlib.redirect_stdout(sys.stderr):  # some models print
            kept.save(_examined(chosen or [*FAMILIES]))
    sys.stdout.writelines(f"{line}\n" for line in page(kept.load()))
    sys.stdout.write(f"\n{coverage.section(coverage.kept())}")


def _examined(chosen: list[str]) -> dict[str, Any]:
    """Run the checks of some families; those of the others stay as they are kept."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for architecture in (a for a in architectures() if a.family in chosen):
        with tempfile.TemporaryDirectory() as folder:
            result = examine(architecture, Path(folder))
        found[architecture.family][architecture.type] = result
    before = kept.load()["families"] if kept.FILE.exists() else {}
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    families = {f: found.get(f) or before[f] for f in FAMILIES if f in found or f in before}
    return {"versions": versions, "families": families}


if __name__ == "__main__":
    main()
