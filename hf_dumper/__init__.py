"""Dump what happens inside a transformers model, and find where two runs part."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hf_dumper.errors import (
    CaptureError,
    CompiledModelError,
    ConfigError,
    DumpError,
    DumpFormatError,
    DumpIdentityError,
    DumpIncompleteWarning,
    DumpNotFoundError,
    DumpWarning,
    DumpWriteError,
    EmptyDumpError,
    HFDumperError,
    HubError,
    KeyNotFoundError,
    LaunchError,
    ModelError,
    NotYetError,
    PromptError,
    SelectionError,
    TokenNeverReachedWarning,
    UnsupportedGenerationError,
)

if TYPE_CHECKING:
    from hf_dumper.capture.generation import (
        DumpLogitsProcessor,
        DumpStoppingCriteria,
        FollowTokens,
    )
    from hf_dumper.capture.seeding import seeded
    from hf_dumper.comparison import compare, judge, load_comparison
    from hf_dumper.config import DumpConfig
    from hf_dumper.core.verdicts import Comparison, Verdict
    from hf_dumper.model import DEMO_MODEL, DumpingModel, register_hook
    from hf_dumper.session import DumpSession
    from hf_dumper.store import open_dump

__version__ = "0.1.0"

__all__ = [
    "DEMO_MODEL",
    "CaptureError",
    "Comparison",
    "CompiledModelError",
    "ConfigError",
    "DumpConfig",
    "DumpError",
    "DumpFormatError",
    "DumpIdentityError",
    "DumpIncompleteWarning",
    "DumpLogitsProcessor",
    "DumpNotFoundError",
    "DumpSession",
    "DumpStoppingCriteria",
    "DumpWarning",
    "DumpWriteError",
    "DumpingModel",
    "EmptyDumpError",
    "FollowTokens",
    "HFDumperError",
    "HubError",
    "KeyNotFoundError",
    "LaunchError",
    "ModelError",
    "NotYetError",
    "PromptError",
    "SelectionError",
    "TokenNeverReachedWarning",
    "UnsupportedGenerationError",
    "Verdict",
    "compare",
    "judge",
    "load_comparison",
    "open_dump",
    "register_hook",
    "seeded",
]

_HOMES = {
    "Comparison": "hf_dumper.core.verdicts",
    "DEMO_MODEL": "hf_dumper.model",
    "DumpConfig": "hf_dumper.config",
    "DumpLogitsProcessor": "hf_dumper.capture.generation",
    "DumpSession": "hf_dumper.session",
    "DumpStoppingCriteria": "hf_dumper.capture.generation",
    "DumpingModel": "hf_dumper.model",
    "FollowTokens": "hf_dumper.capture.generation",
    "Verdict": "hf_dumper.core.verdicts",
    "judge": "hf_dumper.comparison",
    "load_comparison": "hf_dumper.comparison",
    "open_dump": "hf_dumper.store",
    "register_hook": "hf_dumper.model",
    "seeded": "hf_dumper.capture.seeding",
}
"""Modules that names are fetched from on first use: they bring torch, which takes seconds."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The package; its `compare` is the function, though a package of that name lies inside.

    The import system sets a package's attribute to each module that is imported inside it, at
    whatever time. A property of the class wins over that.
    """

    @property
    def compare(self) -> Any:
        """The function that compares two dumps."""
        return import_module("hf_dumper.comparison").compare

    @compare.setter
    def compare(self, module: ModuleType) -> None:
        """Keep the function when the import system sets the package."""


sys.modules[__name__].__class__ = _Package
