"""The table of ways of generating and checks: run, keep as JSON, print as a section of a page.

python -m tests.generation.coverage --run     # run every check, keep what came of it
python -m tests.generation.coverage           # print the section
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.generation.checks import CHECKS, made
from tests.generation.modes import MODES, demo

RESULTS = Path(__file__).with_name("results.json")

APART = (
    "Speculative decoding takes one row only, and one forward decides several tokens. It is held",
    "against a spy inside transformers, and a plain forward over the returned ids, by",
    "`pytest tests/integration/test_speculation.py tests/integration/test_speculative_dumps.py`.",
)
"""What is checked elsewhere."""

Results = Mapping[str, Mapping[str, str]]


def kept() -> Results:
    """Return what was kept: mode -> check -> "passed" or why not."""
    found: Results = json.loads(RESULTS.read_text("utf-8"))
    return found


def run() -> Results:
    """Run every check of every mode on the embedded model."""
    model, inputs = demo()
    found: dict[str, dict[str, str]] = {}
    for name in MODES:
        with tempfile.TemporaryDirectory() as folder:
            case = made(model, inputs, name, Path(folder) / "dump")
            found[name] = {check: _word(CHECKS[check], case) for check in CHECKS}
    return found


def _word(check, case) -> str:
    try:
        check(case)
    except AssertionError as error:
        return f"failed: {error}"
    return "passed"


def section(results: Results) -> str:
    """Return the section of `docs/coverage.md`."""
    lines = [
        "## Ways of generating",
        "",
        "Each on the embedded model in float32, two prompts of unequal length, padded left.",
        "`python -m tests.generation.coverage --run` runs them again.",
        "",
        "| way of generating | " + " | ".join(CHECKS) + " |",
        "|---|" + ":-:|" * len(CHECKS),
    ]
    for name, checks in results.items():
        marks = ("yes" if word == "passed" else "NO" for word in checks.values())
        lines.append(f"| {name} | " + " | ".join(marks) + " |")
    told = [f"- **{name}**: {check.__doc__}" for name, check in CHECKS.items()]
    return "\n".join([*lines, "", *told, "", *APART, ""])


if __name__ == "__main__":
    if "--run" in sys.argv[1:]:
        RESULTS.write_text(json.dumps(run(), indent=1) + "\n", "utf-8")
    print(section(kept()))  # noqa: T201
