"""What is accepted: a small table per element type, in a file that can be overridden key by key."""

import tomllib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Final

from hf_dumper.core.names import near
from hf_dumper.errors import ConfigError

Limits = Mapping[str, Any]
"""Numbers by name, and one mapping of numbers per element type."""

_FILE: Final = Path(__file__).parent / "limits.toml"

_COARSENESS: Final = ("float64", "float32", "float16", "bfloat16", "float8")
"""Sections of the file, from fine to coarse."""


def load_limits(overrides: str | PathLike[str] | Limits | None = None) -> dict[str, Any]:
    """Return the limits of the package, with a user's file or mapping laid over them.

    Raises:
        ConfigError: there is no such file, it is no TOML, or it has an unknown key.
    """
    limits = tomllib.loads(_FILE.read_text("utf-8"))
    if overrides is None:
        return limits
    if isinstance(overrides, Mapping):
        return _override(limits, overrides, "The limits given")
    path = Path(overrides)
    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        msg = f"Cannot read limits from {str(path)!r}: {error.strerror or error}."
        raise ConfigError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{str(path)!r} is no TOML file: {error}."
        raise ConfigError(msg) from error
    return _override(limits, given, str(path))


def coarseness(dtype: str) -> int:
    """Return how coarse a type is, as the place of its section; -1 for what is exact."""
    name = "float8" if dtype.startswith("float8") else dtype
    name = {"complex64": "float32", "complex128": "float64", "complex32": "float16"}.get(name, name)
    return _COARSENESS.index(name) if name in _COARSENESS else -1


def section(level: int) -> str:
    """Return the name of the section of a coarseness."""
    return _COARSENESS[level]


def _override(limits: dict[str, Any], given: Limits, where: str) -> dict[str, Any]:
    merged = dict(limits)
    for name, value in given.items():
        if name not in limits:
            msg = f"{where} has an unknown key {name!r}.{near(name, limits)}"
            raise ConfigError(msg)
        if isinstance(limits[name], dict):
            if not isinstance(value, Mapping):
                msg = f"{where}: {name!r} is a section, not {value!r}."
                raise ConfigError(msg)
            merged[name] = _override(limits[name], value, f"Section [{name}] of {where}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            msg = f"{where}: {name!r} must be a number that is not negative, not {value!r}."
            raise ConfigError(msg)
        else:
            merged[name] = float(value)
    return merged
