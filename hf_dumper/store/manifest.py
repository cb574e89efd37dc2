"""The manifest: how a dump is recognised, created, continued and overwritten."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any, Final

from hf_dumper.core.types import FORMAT_VERSION
from hf_dumper.errors import CaptureError, DumpFormatError, DumpIdentityError
from hf_dumper.store.durable import sync
from hf_dumper.store.files import TEMPORARY, read_json, write_json
from hf_dumper.store.layout import FAILURES, KIND, LOCK, MANIFEST, MODEL_TREE, PAGE, RUNS

_CONTENTS: Final = (RUNS, "weights", "tokenizer", "floor", FAILURES, MODEL_TREE, MANIFEST)
"""What a dump may hold, the manifest last: overwriting removes these names and no others."""

_OWN_KEYS: Final = ("kind", "format_version", "identity")


def is_dump(path: Path) -> bool:
    """Tell from the first bytes of its manifest whether a folder is a native dump.

    The text is searched rather than parsed, so that a dump whose manifest is damaged further down
    is still recognised, and the reader can name the damaged file.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():  # also keeps a pipe of that name from blocking us
        return False
    with manifest.open("rb") as file:
        return f'"{KIND}"'.encode() in file.read(PAGE)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of the dump at `path`.

    Raises:
        DumpFormatError: it is damaged, or of a format version that this release cannot read.
    """
    manifest = read_json(path / MANIFEST)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        msg = (
            f"{path / MANIFEST} has format_version {version!r}; this release of hf_dumper reads "
            f"version {FORMAT_VERSION}. Another release may have written it."
        )
        raise DumpFormatError(msg)
    return manifest


def prepare_dump(
    path: Path,
    manifest: Mapping[str, Any],
    tree: Mapping[str, Any] | None,
    *,
    overwrite: bool,
    durable: bool = False,
) -> None:
    """Create the dump at `path`, or make sure that the one there is a dump of the same thing.

    Raises:
        DumpIdentityError: the folder holds a dump of something else, and `overwrite` is False.
        DumpFormatError: the folder is not empty and is no dump, or a damaged one.
        OSError: the folder cannot be written.
    """
    prepare_folder(path)
    if is_dump(path):
        if not overwrite:
            _check_identity(path, manifest)
            return
        _remove_dump(path)
    head = {"kind": KIND, "format_version": FORMAT_VERSION}
    write_json(path / MANIFEST, head | dict(manifest) | head, durable=durable)
    if tree is not None:
        write_json(path / MODEL_TREE, tree, durable=durable)
    if durable:
        sync(path)
        sync(path.parent)


def prepare_folder(path: Path) -> None:
    """Create the folder of a dump, or make sure that nothing else is in it.

    Raises:
        DumpFormatError: the folder is not empty and is no dump.
        OSError: the folder cannot be written.
    """
    path.mkdir(parents=True, exist_ok=True)
    if is_dump(path):
        return
    if any(child.suffix != TEMPORARY and child.name != LOCK for child in path.iterdir()):
        msg = f"{path} is not empty and is no dump. Choose another dump_path."
        raise DumpFormatError(msg)


def add_note(path: Path, name: str, value: Mapping[str, Any]) -> None:
    """Add a fact about the whole dump to its manifest; an older one of that name is replaced.

    Raises:
        CaptureError: the manifest uses the name itself.
        OSError: the manifest cannot be written.
    """
    if name in _OWN_KEYS:
        msg = f"A note cannot be named {name!r}: the manifest uses {', '.join(_OWN_KEYS)} itself."
        raise CaptureError(msg)
    write_json(path / MANIFEST, read_manifest(path) | {name: dict(value)})


def _remove_dump(path: Path) -> None:
    # By name and with the manifest last: files of the user stay, and a removal that is cut short
    # leaves a folder that is still known as a dump.
    for name in _CONTENTS:
        child = path / name
        if child.is_dir() and not child.is_symlink():
            rmtree(child)
        else:
            child.unlink(missing_ok=True)


def _check_identity(path: Path, manifest: Mapping[str, Any]) -> None:
    there = read_manifest(path).get("identity", {})
    here = json.loads(json.dumps(manifest.get("identity", {}), default=str))
    differences = list(_differences(there, here))
    if differences:
        msg = (
            f"{path} holds a dump of something else: {'; '.join(differences)}. "
            "Choose another dump_path, or overwrite=True to remove that dump."
        )
        raise DumpIdentityError(msg)


def _differences(there: object, here: object, key: str = "") -> Iterator[str]:
    if there == here:
        return
    if not (isinstance(there, dict) and isinstance(here, dict)):
        yield f"{key or 'identity'} is {_short(there)} there and {_short(here)} here"
        return
    for name in dict.fromkeys((*there, *here)):
        inner = f"{key}.{name}" if key else name
        yield from _differences(there.get(name), here.get(name), inner)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
