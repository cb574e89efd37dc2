"""Names of the files that hold one tensor each, as msit has them; no name leaves its folder.

A module's tensors of a token lie in `<token>/root.<module>/`, a file for each slot. What msit has
no names for is told by signs that no escaped name contains: `~1` after a folder is the module's
second call in a forward, `@1` the token's second forward (a prompt fed in chunks), `+1` after a
file a second slot that comes out as the same name.
"""

from collections import Counter
from typing import Final
from urllib.parse import quote

from xxhash import xxh3_64_hexdigest

from hf_dumper.core.types import ROOT, Tick

MOST: Final = 180
"""Characters of a name at most: file systems take 255 bytes, and a suffix follows."""

_ELSEWHERE: Final = {(ROOT, "logits"): ("lm_head", "output")}
"""Tensors that msit keeps under the name of another module."""


def escaped(name: str) -> str:
    """Return a name made of letters, digits, `_`, `.`, `-` and `%` only.

    Any other character becomes %XX for each of its UTF-8 bytes. A name that is too long for a file
    is cut, and ends in the hash of the whole.
    """
    text = quote(name, safe="", errors="surrogatepass").replace("~", "%7E")
    if len(text) <= MOST:
        return text
    digest = xxh3_64_hexdigest(name.encode("utf-8", "surrogatepass"))
    return f"{text[: MOST - len(digest) - 1]}-{digest}"


def prefixed(module: str) -> str:
    """Return a module's name with the leading `root.` that msit gives it."""
    return ROOT if module == ROOT else f"{ROOT}.{module}"


def place(module: str, slot: str) -> tuple[str, str]:
    """Return module and slot under which msit keeps a tensor."""
    return _ELSEWHERE.get((module, slot), (module, slot))


def distinct(stem: str, suffix: str, taken: set[str]) -> str:
    """Return the name of a file that is not taken, and take it.

    Names that differ in case only are one name to some file systems.
    """
    path, n = f"{stem}{suffix}", 0
    while path.casefold() in taken:
        n += 1
        path = f"{stem}+{n}{suffix}"
    taken.add(path.casefold())
    return path


class Paths:
    """Names the files of one run, forward by forward; a name is given once."""

    def __init__(self, suffix: str) -> None:
        """Give every file that suffix."""
        self._suffix = suffix
        self._forwards: Counter[int] = Counter()  # of each token
        self._token = self._nth = 0
        self._forward = -1
        self._taken: set[str] = set()

    def begin(self, tick: Tick) -> bool:
        """Name the tensors of this forward from now on; return whether it is another one."""
        if tick.forward == self._forward:
            return False
        self._forward, self._token = tick.forward, tick.token
        self._nth = self._forwards[tick.token]
        self._forwards[tick.token] += 1
        self._taken.clear()
        return True

    def folder(self, module: str, op: str, call: int) -> str:
        """Return the folder of a module's call, or of a function inside it, in this forward."""
        name = f"{prefixed(module)}.{op.removesuffix('.0')}" if op else prefixed(module)
        again = f"~{call}" if call else ""
        later = f"@{self._nth}" if self._nth else ""
        return f"{self._token}/{escaped(name)}{again}{later}"

    def file(self, module: str, slot: str, op: str, call: int) -> str:
        """Return the file of a tensor of this forward; no other call returns the same."""
        module, slot = place(module, slot)
        stem = f"{self.folder(module, op, call)}/{escaped(slot.replace('.', '_'))}"
        return distinct(stem, self._suffix, self._taken)
