"""The results that are kept beside the checks."""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "results.json"


def load() -> dict[str, Any]:
    """Return versions, and the results by family and type."""
    found: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return found


def save(results: dict[str, Any]) -> None:
    """Keep results."""
    FILE.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
