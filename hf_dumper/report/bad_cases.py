"""Bad cases and text metrics as tables on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from hf_dumper.core.verdicts import Verdict
from hf_dumper.report.numbers import NOTHING, number, plural
from hf_dumper.report.overview import printable
from hf_dumper.report.texts import quoted

_MOST = 20
_METRICS = {
    "exact": "exact",
    "edit_distance": "edits",
    "edit_similarity": "similar",
    "bleu": "BLEU",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}


def matching(facts: Mapping[str, Any]) -> list[Text]:
    """Return how the rows of two files match; what has no partner is told by id."""
    judged = f"{plural(facts['differing'], 'row')} judged unlike, {facts['agreeing']:,} alike."
    lines = [Text(judged, "bold")]
    told = {
        "doubled": "more than once in a file, left out",
        "only_golden": "in the golden's file only",
        "only_candidate": "in the candidate's file only",
        "other_prompts": "with another prompt on the other side, left out",
    }
    for name, meaning in told.items():
        if facts[name]:
            ids = plural(len(facts[name]), "id")
            lines.append(Text(f"{ids} {meaning}: {_listed(facts[name])}", "yellow"))
    return lines


def case_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line per bad case: who was right, and the first token that differs."""
    table = _table("id", "right", "token", "golden", "candidate", "margin", "KL", "why")
    for row in rows:
        at = NOTHING if row["token"] is None else f"{row['token']} of {row['tokens']}"
        chosen = (_token(row, side) for side in ("golden", "candidate"))
        numbers = (number(row[name], 2) for name in ("margin", "kl"))
        right = "golden" if row["golden_passed"] else "candidate"
        cells = [row["id"], right, at, *chosen, *numbers, _why(row)]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def not_reproduced(rows: Sequence[Mapping[str, Any]]) -> list[Text]:
    """Return a warning for each side whose answers in the file are not those of the dump."""
    lines = []
    for side in ("golden", "candidate"):
        ids = [row["id"] for row in rows if row[f"{side}_reproduced"] is False]
        if ids:
            text = f"The {side} side now answers otherwise than its file says: {_listed(ids)}"
            lines.append(Text(text, "yellow"))
    return lines


def metric_table(rows: Sequence[Mapping[str, Any]], total: Mapping[str, Any]) -> Table:
    """Return a line per pair of answers, and one over all."""
    table = _table("id", *_METRICS.values())
    for row in rows:
        table.add_row(printable(row["id"]), *map(_value, (row[name] for name in _METRICS)))
    table.add_section()
    table.add_row("all", *map(_value, (total[name] for name in _METRICS)), style="bold")
    return table


def _table(*heads: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _why(row: Mapping[str, Any]) -> str:
    """Return the verdict of the token; the reason only where there is no token, or no verdict."""
    if row["token"] is not None and row["verdict"] != Verdict.NOT_COMPUTABLE:
        return str(row["verdict"] or row["status"])
    return f"{row['status']}: {row['reason']}" if row["reason"] else str(row["status"])


def _token(row: Mapping[str, Any], side: str) -> str:
    text, chosen = row[f"{side}_text"], row[f"{side}_id"]
    if text is not None:
        return quoted(text)
    return NOTHING if chosen is None else str(chosen)


def _value(value: bool | float | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value)


def _listed(ids: Sequence[str]) -> str:
    rest = f" and {len(ids) - _MOST} more" if len(ids) > _MOST else ""
    return printable(", ".join(ids[:_MOST])) + rest
