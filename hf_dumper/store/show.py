"""What a dump looks like in a terminal and in a notebook."""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from hf_dumper.errors import DumpError
from hf_dumper.store.run_reader import RunReader

_MODEL_NAMES = ("model", "class", "architecture")
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def as_text(path: Path, manifest: Mapping[str, Any], runs: Iterable[RunReader]) -> str:
    """Return one line for a terminal."""
    facts = _facts(manifest, runs)
    return f"<dump {str(path)!r}: {', '.join(facts)}>"


def as_html(path: Path, manifest: Mapping[str, Any], runs: Iterable[RunReader]) -> str:
    """Return a small block for a notebook; all of it is escaped, a dump may come from anywhere."""
    facts = " &middot; ".join(escape(fact) for fact in _facts(manifest, runs))
    return f"<div><b>hf_dumper dump</b> <code>{escape(str(path))}</code><br>{facts}</div>"


def _facts(manifest: Mapping[str, Any], runs: Iterable[RunReader]) -> list[str]:
    try:
        infos = [_with_sums(run) for run in runs]
    except DumpError as error:  # a repr that raises would hide the dump from a debugger
        return [_model(manifest), f"damaged: {error}"]
    tokens, records = _sum(infos, "tokens"), _sum(infos, "records")
    whole = sum(info.get("complete") is True for info in infos)
    state = "complete" if whole == len(infos) else f"{len(infos) - whole} incomplete"
    counted = [_count(len(infos), "run"), _count(tokens, "token"), _count(records, "record")]
    return [_model(manifest), *counted, _size(_sum(infos, "bytes")), state]


def _with_sums(run: RunReader) -> dict[str, Any]:
    info = run.info()
    if "records" not in info:  # cut off: only the index knows
        lookup = run.lookup
        info |= {"records": len(lookup), "tokens": lookup.tokens(), "bytes": lookup.bytes()}
    elif isinstance(info["records"], dict):
        info["records"] = _sum(({"n": n} for n in info["records"].values()), "n")
    return info


def _sum(infos: Iterable[Mapping[str, Any]], name: str) -> int:
    values = (info.get(name, 0) for info in infos)
    return sum(value for value in values if isinstance(value, int))


def _model(manifest: Mapping[str, Any]) -> str:
    identity = manifest.get("identity")
    places = (identity if isinstance(identity, dict) else {}, manifest)
    named = (place[name] for place in places for name in _MODEL_NAMES if place.get(name))
    return str(next(named, "unnamed model"))


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _size(nbytes: float) -> str:
    unit = 0
    while nbytes >= 1000 and unit < len(_UNITS) - 1:
        nbytes /= 1000
        unit += 1
    return f"{nbytes:.3g} {_UNITS[unit]}"
