"""Opens dumps of any kind: exactly one registered reader must recognise the folder."""

from os import PathLike
from pathlib import Path
from typing import Final, Protocol

from hf_dumper.core.protocols import DumpReader
from hf_dumper.core.registry import Registry
from hf_dumper.errors import ConfigError, DumpFormatError, DumpNotFoundError
from hf_dumper.hub.names import is_hub_url
from hf_dumper.store.msit_reader import MsitReader
from hf_dumper.store.reader import NativeReader


class ReaderType(Protocol):
    """A class of readers: it recognises a dump and opens it."""

    def detect(self, path: Path) -> bool:
        """Tell from file names and headers whether `path` is a dump of this kind."""

    def __call__(self, path: Path) -> DumpReader:
        """Open the dump."""


READERS: Final[Registry[ReaderType]] = Registry("reader", "hf_dumper.readers")
READERS.register("native")(NativeReader)
READERS.register("msit")(MsitReader)


def open_dump(path: str | PathLike[str], *, reader: str | None = None) -> DumpReader:
    """Open the dump at `path` with the reader that recognises it, or with the named one.

    `hf://datasets/user/name[@revision][/folder]`, or `hf://user/name`, is a dump on a hub: of it
    only what is asked for is fetched.

    Raises:
        DumpNotFoundError: there is nothing at `path`.
        HubError: the hub does not give it, in one line.
        DumpFormatError: no reader recognises it, or several do; or the dump is damaged.
        ConfigError: no reader has that name.
    """
    if is_hub_url(str(path)):
        return _open_remote(str(path), reader)
    folder = Path(path)
    if not folder.exists():
        msg = f"There is no dump at '{folder}'.{_nearby(folder)}"
        raise DumpNotFoundError(msg)
    if reader is not None:
        return READERS.get(reader)(folder)
    known = dict(READERS)
    names = [name for name, kind in known.items() if _detects(kind, folder)]
    if len(names) == 1:
        return known[names[0]](folder)
    if names:
        listed = ", ".join(map(repr, names))
        msg = f"Cannot open '{folder}': {len(names)} readers recognise it ({listed}). "
        msg += "Pass reader=... to choose."
    else:
        listed = ", ".join(map(repr, known))
        msg = f"'{folder}' is no dump that a reader recognises ({listed}).{_nearby(folder)}"
    raise DumpFormatError(msg)


def _open_remote(url: str, reader: str | None) -> DumpReader:
    from hf_dumper.store.remote import HubReader  # brings the hub's client

    if reader not in (None, "native"):
        msg = f"Reader {reader!r} reads folders only: download {url} first."
        raise ConfigError(msg)
    return HubReader(url)


def _detects(kind: ReaderType, folder: Path) -> bool:
    try:
        return kind.detect(folder)
    except OSError as error:
        msg = f"Cannot read '{folder}': {error.strerror or error}"
        raise DumpFormatError(msg) from error


def _nearby(folder: Path) -> str:
    """Name the dumps inside the folder, or else beside it."""
    for place in (folder, folder.parent):
        try:
            dumps = sorted(str(child) for child in place.iterdir() if NativeReader.detect(child))
        except OSError:
            continue
        if dumps:
            rest = len(dumps) - 5
            listed = ", ".join(map(repr, dumps[:5])) + (f" and {rest} more" if rest > 0 else "")
            return f" There are dumps at {listed}."
    return ""
