"""Objects of JSON from files of others."""

import json
from typing import Any


def json_object(held: bytes) -> dict[str, Any]:
    """Return the object that the bytes of a JSON file hold.

    Raises:
        ValueError: they hold none; its text goes on after the name of the file.
    """
    try:
        value = json.loads(held)
    except (ValueError, RecursionError) as error:
        msg = f"is no JSON: {error}"
        raise ValueError(msg) from error
    if not isinstance(value, dict):
        msg = f"holds {type(value).__name__}, not an object"
        raise ValueError(msg)  # noqa: TRY004
    return value
