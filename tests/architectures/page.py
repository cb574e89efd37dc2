"""The results of all checks as a page."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Results = Mapping[str, Any]

CHECKS = ("outputs", "witness", "left behind", "positions", "padded", "chunked")
TITLES = {
    "causal": "Causal language models",
    "seq2seq": "Sequence to sequence",
    "image-text": "Images and text",
    "speech": "Speech",
    "encoder": "Encoders of text",
    "image": "Encoders of images",
}
INTRODUCTION = (Path(__file__).parent / "introduction.md").read_text("utf-8")


def page(results: Results) -> Iterator[str]:
    """Yield the lines of the page."""
    yield INTRODUCTION.format(**results["versions"])
    yield from _summary(results["families"])
    for family, entries in results["families"].items():
        yield f"\n## {TITLES[family]}\n"
        yield from _table({k: v for k, v in entries.items() if "not built" not in v})
        yield from _not_built({k: v for k, v in entries.items() if "not built" in v})


def _summary(families: Results) -> Iterator[str]:
    yield "| family | classes | built | " + " | ".join(CHECKS) + " |"
    yield "|---|" + "--:|" * (2 + len(CHECKS))
    for family, entries in families.items():
        built = [entry for entry in entries.values() if "not built" not in entry]
        counts = (_counted([entry[check] for entry in built]) for check in CHECKS)
        yield f"| {TITLES[family]} | {len(entries)} | {len(built)} | {' | '.join(counts)} |"


def _counted(found: list[str | None]) -> str:
    """Return how many passed of those that a check applies to, those with exceptions beside."""
    applies = [one for one in found if one is not None]
    passed = sum(not one for one in applies)
    partly = sum(one.startswith("all but") for one in applies)
    return f"{passed}{f' + {partly}' * bool(partly)} of {len(applies)}" if applies else "-"


def _table(entries: Results) -> Iterator[str]:
    yield "| type | class | run | records | " + " | ".join(CHECKS) + " | experts |"
    yield "|---|---|---|--:|" + "---|" * (len(CHECKS) + 1)
    for kind, entry in entries.items():
        cells = [_cell(entry[check]) for check in CHECKS]
        facts = [kind, entry["class"], entry["run"], str(entry["records"])]
        yield "| " + " | ".join([*facts, *cells, _experts(entry["experts"])]) + " |"


def _cell(found: str | None) -> str:
    return "-" if found is None else found or "yes"


def _experts(found: Mapping[str, bool] | None) -> str:
    if found is None:
        return "-"
    lacking = [fact for fact, there in found.items() if not there]
    return f"lacks {', '.join(lacking)}" if lacking else "yes"


def _not_built(entries: Results) -> Iterator[str]:
    if entries:
        yield "\nNot built, or not run by these inputs, with what transformers said first:\n"
    for kind, entry in entries.items():
        yield f"- {kind} ({entry['class']}): {entry['not built'].replace('<', '&lt;')}"
