"""A comparison as JUnit XML, which build servers show: one case per module and token."""

import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from hf_dumper.core.verdicts import BAD, GOOD, Comparison, Verdict
from hf_dumper.report.tables import every_record
from hf_dumper.report.words import message, why

_FORBIDDEN: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""

_MODULE: Final = ("run", "token", "module")
_COLUMNS: Final = (*_MODULE, "slot", "call", "op", "side", "verdict", "rule", "reason")


class JUnitReporter:
    """JUnit XML.

    The first case is the verdict as a whole. A module fails when a tensor of it does; it is skipped
    when none of its tensors could be judged; a warning is told in its output.
    """

    def write(self, comparison: Comparison, path: Path) -> None:
        """Write the file."""
        suite = ElementTree.Element("testsuite", name="hf_dumper")
        _whole(suite, comparison)
        rows = every_record(comparison).select(_COLUMNS).to_pylist()
        for (run, token, module), group in groupby(_sorted(rows), key=_module):
            _case(suite, f"run {run}", module, f"token {token}", list(group))
        for row in comparison.tokens.to_pylist():
            _token(suite, row)
        for name, tag in (("failures", "failure"), ("skipped", "skipped")):
            suite.set(name, str(len(suite.findall(f"testcase/{tag}"))))
        suite.set("tests", str(len(suite)))
        suite.set("errors", "0")
        root = ElementTree.Element("testsuites")
        root.append(suite)
        ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _whole(suite: ElementTree.Element, comparison: Comparison) -> None:
    case = _new(suite, "comparison", f"{comparison.golden} / {comparison.candidate}")
    if not comparison.passed:
        _add(case, "failure", comparison.verdict.upper(), message(comparison))


def _case(
    suite: ElementTree.Element, run: str, module: str, name: str, rows: list[Mapping[str, Any]]
) -> None:
    case = _new(suite, f"{run}.{module}", name)
    bad = [row for row in rows if row["verdict"] in BAD]
    judged = [row for row in rows if row["verdict"] in {*GOOD, *BAD, Verdict.WARN}]
    if bad:
        _add(case, "failure", f"{bad[0]['slot']}: {why(bad[0])}", _lines(bad))
    elif not judged:
        _add(case, "skipped", f"{rows[0]['verdict']}: {why(rows[0])}", _lines(rows))
    elif any(row["verdict"] not in GOOD for row in rows):
        others = [row for row in rows if row["verdict"] not in GOOD]
        ElementTree.SubElement(case, "system-out").text = _clean(_lines(others))


def _token(suite: ElementTree.Element, row: Mapping[str, Any]) -> None:
    case = _new(suite, f"run {row['run']}.tokens", f"row {row['row']} token {row['token']}")
    if row["verdict"] in ("diverged", *BAD):
        told = f"{row['golden_id']} {row['golden_text']!r}, {row['candidate_id']} "
        told += f"{row['candidate_text']!r}"
        _add(case, "failure", why(row), told)
    elif row["verdict"] == Verdict.NOT_COMPUTABLE:
        _add(case, "skipped", why(row), "")


def _sorted(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Put the rows of a module and token side by side, in order of its first completion."""
    first: dict[tuple[Any, ...], int] = {}
    listed = list(rows)
    for i, row in enumerate(listed):
        first.setdefault(_module(row), i)
    return sorted(listed, key=lambda row: first[_module(row)])


def _module(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _MODULE)


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join(f"{_tensor(row)}: {row['verdict']}: {why(row)}" for row in rows)


def _tensor(row: Mapping[str, Any]) -> str:
    op = f"{row['op']} " if row["op"] else ""
    call = f" call {row['call']}" if row["call"] else ""
    side = "" if row["side"] == "both" else f" ({row['side']} only)"
    return f"{op}{row['slot']}{call}{side}"


def _new(suite: ElementTree.Element, group: str, name: str) -> ElementTree.Element:
    names = {"classname": _clean(group), "name": _clean(name)}
    return ElementTree.SubElement(suite, "testcase", names)


def _add(case: ElementTree.Element, tag: str, message: str, text: str) -> None:
    ElementTree.SubElement(case, tag, message=_clean(message)).text = _clean(text)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
