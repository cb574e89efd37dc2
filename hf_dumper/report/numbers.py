"""Numbers, sizes, shapes and types as people read them; what is not known is "-"."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

NOTHING: Final = "-"
_UNITS: Final = ("bytes", "kB", "MB", "GB", "TB")
_SHORT: Final = {"float": "f", "bfloat": "bf", "complex": "c", "int": "i", "uint": "u"}


def size(nbytes: float | None) -> str:
    """Return 1234567 as "1.23 MB"."""
    if nbytes is None:
        return NOTHING
    unit = 0
    while nbytes >= 999.5 and unit < len(_UNITS) - 1:
        nbytes /= 1000
        unit += 1
    return f"{nbytes:.3g} {_UNITS[unit]}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number to so many significant digits."""
    if value is None:
        return NOTHING
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and value < 1e6):
        return str(int(value))
    return f"{value:.{digits}g}"


def shape(lengths: Sequence[int] | None) -> str:
    """Return a shape as Python writes it, so "(1, 9)" or "(9,)"."""
    return NOTHING if lengths is None else str(tuple(lengths))


def dims(lengths: Sequence[int] | None) -> str:
    """Return a shape without brackets, such as "1x9", for narrow columns; "scalar" for ()."""
    if lengths is None:
        return NOTHING
    return "x".join(map(str, lengths)) or "scalar"


def dtype(name: str | None) -> str:
    """Return the short name of an element type, such as "f32" or "bf16"."""
    if not name:
        return NOTHING
    for long, short in _SHORT.items():
        rest = name.removeprefix(long)
        if rest != name and rest[:1].isdigit():
            return short + rest
    return name


def plural(n: int, noun: str) -> str:
    """Return "1 run", "2 runs"; thousands are separated."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def strict(value: Any) -> Any:
    """Return a value as JSON knows it: numbers that it lacks become "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return value
