"""Registries of named implementations, extended by packages through entry points."""

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from hf_dumper.core.names import near
from hf_dumper.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Named implementations of one seam; entry points of `group` are loaded on first look-up."""

    def __init__(self, kind: str, group: str) -> None:
        """Create an empty registry; `kind` is the word for its members in messages."""
        self.kind = kind
        self._group = group
        self._known: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its argument under a lower-case word.

        Raises:
            ConfigError: the name is taken.
        """

        def keep(member: T) -> T:
            if name in self._known:
                msg = f"A {self.kind} named {name!r} is registered already."
                raise ConfigError(msg)
            self._known[name] = member
            return member

        return keep

    def get(self, name: str) -> T:
        """Return the member of that name.

        Raises:
            ConfigError: there is none; the message names the nearest.
        """
        self._load()
        if name not in self._known:
            msg = f"No {self.kind} named {name!r}.{near(name, self._known)}"
            raise ConfigError(msg)
        return self._known[name]

    def __iter__(self) -> Iterator[tuple[str, T]]:
        """Iterate over (name, member)."""
        self._load()
        return iter(tuple(self._known.items()))

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for point in entry_points(group=self._group):
            if point.name not in self._known:
                self._known[point.name] = point.load()
