"""Which tokens and which modules the user asked for. Nothing is guessed: no match is an error."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hf_dumper.core.names import near
from hf_dumper.core.types import ROOT
from hf_dumper.errors import ConfigError, SelectionError


@dataclass(frozen=True, slots=True)
class TokenSelection:
    """A set of token indices; None stands for all of them."""

    wanted: frozenset[int] | None

    def __contains__(self, token: int) -> bool:
        """Tell whether a token index was asked for."""
        return self.wanted is None or token in self.wanted

    def missed(self, reached: int) -> list[int]:
        """Return the wanted indices that a generation of `reached` tokens did not have."""
        return sorted(t for t in self.wanted or () if t >= reached)


def parse_tokens(value: object) -> TokenSelection:
    """Return the tokens that a `token_range` means.

    Raises:
        ConfigError: an empty selection, a negative number, or something that is no range.
    """
    if value is None:
        return TokenSelection(frozenset({0}))
    if isinstance(value, str):
        return TokenSelection(None if value.strip() == "all" else _parse_text(value))
    if not isinstance(value, Sequence) or not all(type(t) is int for t in value):
        msg = f'token_range must be a list or range of integers, "0-3,8" or "all", not {value!r}.'
        raise ConfigError(msg)
    if not value:
        msg = "token_range is empty, so nothing would be dumped. None means the prefill alone."
        raise ConfigError(msg)
    if min(value) < 0:
        msg = f"token_range holds {min(value)}; token indices start at 0, the prefill."
        raise ConfigError(msg)
    return TokenSelection(frozenset(value))


def _parse_text(text: str) -> frozenset[int]:
    tokens: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None:
            msg = f'Cannot read token_range {text!r} at {part!r}. Write "0-3,8" or "all".'
            raise ConfigError(msg)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            msg = f"token_range {part.strip()!r} runs backwards."
            raise ConfigError(msg)
        tokens.update(range(first, last + 1))
    return frozenset(tokens)


def canonical(name: str) -> str:
    """Return a module name without its leading `root.`; the outermost module is `root`."""
    return name.removeprefix("root.") or ROOT


def match_names(patterns: str | Sequence[str], names: Iterable[str]) -> set[str]:
    """Return the names that match a pattern; `*` is the only special character.

    Raises:
        SelectionError: a pattern matches nothing; the message names the nearest names.
    """
    known = list(names)
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        wanted = canonical(pattern)
        regex = re.compile(".*".join(map(re.escape, wanted.split("*"))), re.DOTALL)
        matches = {name for name in known if regex.fullmatch(name)}
        if not matches:
            msg = f"No module matches layer_name {pattern!r}.{near(wanted, known)}"
            raise SelectionError(msg)
        found |= matches
    return found


def match_classes(wanted: Sequence[type | str], classes: Mapping[str, type]) -> set[str]:
    """Return the names of the modules that are instances of a wanted class, or of one so named.

    Raises:
        SelectionError: a wanted class has no instance; the message names the nearest classes.
    """
    found: set[str] = set()
    for item in wanted:
        matches = {name for name, cls in classes.items() if _is_a(cls, item)}
        if not matches:
            shown = item if isinstance(item, str) else item.__name__
            present = sorted({cls.__name__ for cls in classes.values()})
            msg = f"No module is a {shown!r}.{near(shown, present)}"
            raise SelectionError(msg)
        found |= matches
    return found


def _is_a(cls: type, wanted: type | str) -> bool:
    if isinstance(wanted, str):
        return any(base.__name__ == wanted for base in cls.__mro__)
    return issubclass(cls, wanted)
