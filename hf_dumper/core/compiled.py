"""How to do without the compiled parts of the package, all of which have a plain twin."""

from typing import Final

PURE_PYTHON: Final = "HF_DUMPER_PURE_PYTHON"
"""Environment variable that, unless empty, keeps compiled parts from being used."""
