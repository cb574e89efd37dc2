"""Digests of plain values, and of facts that carry their own."""

import json
from collections.abc import Mapping
from typing import Any, Final

from xxhash import xxh3_64_hexdigest

DIGEST: Final = "digest"
"""Name under which facts carry the digest of all the others."""


def json_digest(value: object) -> str:
    """Return the xxh3-64 of a JSON-ready value, whatever the order of its keys."""
    return xxh3_64_hexdigest(json.dumps(value, sort_keys=True).encode())


def sealed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON-ready facts with their digest; what JSON does not know becomes its text."""
    plain = json.loads(json.dumps(dict(facts), default=str))
    return {**plain, DIGEST: json_digest(plain)}


def is_sealed(facts: Mapping[str, Any]) -> bool:
    """Tell whether the digest that facts carry is theirs."""
    rest = {name: value for name, value in facts.items() if name != DIGEST}
    return facts.get(DIGEST) == json_digest(rest)
