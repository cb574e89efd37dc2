"""Adapters that one side has merged into its weights, or has where the other has none.

Then what happens inside a module with adapters differs by nature: its output is what counts.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from hf_dumper.core.verdicts import Finding

INSIDE: Final = "it is inside a module with adapters, which the two sides compute in other ways"


class Adapted:
    """Tells what is inside modules with adapters, where the two sides have them differently."""

    def __init__(self, golden: Mapping[str, Any], candidate: Mapping[str, Any]) -> None:
        """Take the manifests of both sides."""
        ours, theirs = (_adapters(side) for side in (golden, candidate))
        differ = any(ours.get(part) != theirs.get(part) for part in ("merged", "modules"))
        named = (*ours.get("modules", ()), *theirs.get("modules", ())) if differ else ()
        self._modules = frozenset(named)

    def holds(self, name: str) -> bool:
        """Tell whether a module, or a weight by its name, is inside such a module."""
        owner = name.rpartition(".")[0]
        while owner:
            if owner in self._modules:
                return True
            owner = owner.rpartition(".")[0]
        return False


def adapter_findings(golden: Mapping[str, Any], candidate: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield that adapters differ, and that weights are quantised, with what it means."""
    ours, theirs = (_adapters(side) for side in (golden, candidate))
    if ours != theirs:
        values = _told(ours), _told(theirs)
        yield Finding("adapters", *values, f"adapters: {values[0]} against {values[1]}")
    golden_kinds, candidate_kinds = _kinds(golden), _kinds(candidate)
    if golden_kinds != candidate_kinds:
        meaning = f"quantised weights: {golden_kinds} against {candidate_kinds}: they round"
        yield Finding("quantised weights", golden_kinds, candidate_kinds, meaning)


def _kinds(manifest: Mapping[str, Any]) -> str:
    kinds: Mapping[str, int] = manifest.get("quantised") or {}
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"


def _adapters(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    return (manifest.get("identity") or {}).get("adapters") or {}


def _told(adapters: Mapping[str, Any]) -> str:
    if not adapters:
        return "none"
    active, merged = (", ".join(adapters[part]) or "none" for part in ("active", "merged"))
    return f"active {active}, merged {merged}, in {len(adapters['modules'])} modules"
