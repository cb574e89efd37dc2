"""What of a model, a machine and a regime is not as a dump says it was."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

_FIELDS: Final = {"identity": "", "versions": "versions"}
"""Parts of the manifest that are compared, and what their fields are called."""

_ASIDE: Final = ("dump_config", "config_hash", "weights_hash")
"""Parts of the identity that are the same by construction, or told by what they are hashes of."""

_OF_RUN: Final = ("regime", "inputs", "generation_config", "kind")
_MOST: Final = 80


@dataclass(frozen=True, slots=True)
class Change:
    """One setting: its name, what the dump says, and what it is now; None where it is not set."""

    field: str
    then: Any
    now: Any

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.field}: {_short(self.then)} then, {_short(self.now)} now"


def changes_of_manifest(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Change, ...]:
    """Return what differs of the model: class, types, configuration, weights, versions."""
    found: list[Change] = []
    for name, prefix in _FIELDS.items():
        left, right = (_without(side.get(name) or {}, _ASIDE) for side in (then, now))
        found += _differences(left, right, prefix)
    found += _differences(then.get("config"), now.get("config"), "config")
    found += _weights(then.get("weights"), now.get("weights"))
    return tuple(found)


def changes_of_run(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Change, ...]:
    """Return what differs of the regime of one run: threads, flags, cache, generation options."""
    return tuple(
        change
        for name in _OF_RUN
        for change in _differences(then.get(name), now.get(name), name if name != "regime" else "")
    )


def _without(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _differences(then: object, now: object, field: str = "") -> Iterator[Change]:
    if then == now:
        return
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys((*then, *now)):
            inner = f"{field}.{name}" if field else str(name)
            yield from _differences(then.get(name), now.get(name), inner)
        return
    yield Change(field, then, now)


def _weights(then: Any, now: Any) -> Iterator[Change]:
    """Yield the first weight that differs, and how many do."""
    if then is None or now is None:
        return
    names = [name for name in dict.fromkeys((*then, *now)) if then.get(name) != now.get(name)]
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield Change(f"weights {names[0]!r}{more}", then.get(names[0]), now.get(names[0]))


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        value = " ".join(str(item) for item in value.values())
    text = str(value)
    return text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."
