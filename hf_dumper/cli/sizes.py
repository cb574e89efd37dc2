"""Numbers of bytes as they are typed: 1000000, 500MB, 2GB, 1.5GiB."""

import re
from typing import Final

import typer

_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?)B?|B)?\s*", re.IGNORECASE)
_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> int:
    """Return a number of bytes; kB, MB, GB, TB are powers of 1000, KiB and so on of 1024.

    Raises:
        BadParameter: the text is no size.
    """
    found = _SIZE.fullmatch(text)
    if not found:
        msg = f"{text!r} is no size: give bytes, or a number with a unit, such as 500MB or 2GB"
        raise typer.BadParameter(msg)
    number, unit, binary = found.group(1), (found.group(2) or "").upper(), found.group(3)
    factor = (1024 if binary else 1000) ** _POWERS[unit]
    return int(number) * factor if number.isdecimal() else int(float(number) * factor)
