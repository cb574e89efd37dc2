"""Dump what happens inside a transformers model, and find where two runs part."""

from importlib import import_module
from typing import TYPE_CHECKING

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
    KeyNotFoundError,
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
    from hf_dumper.config import DumpConfig
    from hf_dumper.model import DEMO_MODEL, DumpingModel, register_hook
    from hf_dumper.session import DumpSession
    from hf_dumper.store import open_dump

__version__ = "0.1.0"

__all__ = [
    "DEMO_MODEL",
    "CaptureError",
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
    "KeyNotFoundError",
    "ModelError",
    "NotYetError",
    "PromptError",
    "SelectionError",
    "TokenNeverReachedWarning",
    "UnsupportedGenerationError",
    "open_dump",
    "register_hook",
    "seeded",
]

_HOMES = {
    "DEMO_MODEL": "hf_dumper.model",
    "DumpConfig": "hf_dumper.config",
    "DumpLogitsProcessor": "hf_dumper.capture.generation",
    "DumpSession": "hf_dumper.session",
    "DumpStoppingCriteria": "hf_dumper.capture.generation",
    "DumpingModel": "hf_dumper.model",
    "FollowTokens": "hf_dumper.capture.generation",
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
