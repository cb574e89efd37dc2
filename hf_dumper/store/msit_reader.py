"""The reader of msit's layout, as MsitSink writes it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hf_dumper.core.selection import canonical
from hf_dumper.core.types import FORMAT_VERSION
from hf_dumper.errors import DumpFormatError, DumpNotFoundError, KeyNotFoundError
from hf_dumper.store.files import read_json
from hf_dumper.store.layout import MANIFEST, MODEL_TREE, RUN, RUN_PARTIAL
from hf_dumper.store.lookup import Row
from hf_dumper.store.mapping import ShardMaps
from hf_dumper.store.msit import FOLDER, SIDECAR, TENSORS
from hf_dumper.store.pth import read_pth
from hf_dumper.store.reader import NativeReader
from hf_dumper.store.run_reader import RunReader
from hf_dumper.store.weights import MSIT_INDEX, Weights


class MsitReader(NativeReader):
    """The folder of one run in msit's layout, or a folder with those of several.

    Only the index is as in the native layout: each tensor has a file of its own, which is read when
    it is asked for.
    """

    def __init__(self, path: Path) -> None:
        """Open the run at `path`, or every run below it.

        Raises:
            DumpNotFoundError: there is none.
            DumpFormatError: they are of different models, of an unknown version, damaged, or of
                another tool, which writes no index.
        """
        self._path = Path(path)
        self._runs: dict[int, RunReader] = {}
        self._maps = ShardMaps()
        folders = list(_folders(self._path))
        if not folders:
            msg = f"{self._path} holds no dump in msit's layout."
            raise DumpNotFoundError(msg)
        manifests = [_manifest(folder) for folder in folders]
        self._manifest = manifests[0]
        self._manifests = dict(zip(folders, manifests, strict=True))
        self._folders: dict[int, Path] = {}
        for folder, manifest in self._manifests.items():
            if manifest.get("identity") != self._manifest.get("identity"):
                raise _mixed(self._path, folders)
            if self._folders.setdefault(_number(folder), folder) != folder:
                raise _mixed(self._path, folders)

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Tell from the names of folders whether `path` is a run in msit's layout or holds some."""
        return next(_folders(path), None) is not None

    def runs(self) -> tuple[int, ...]:
        """Return the numbers of the runs, ascending; those cut off are among them."""
        return tuple(sorted(self._folders))

    def folder(self, run: int) -> Path:
        """Return the folder of a run, which the files of an index are relative to."""
        return self._folders[run]

    def tree(self) -> dict[str, Any]:
        """Return the tree of the model's modules, with the names that keys have.

        Raises:
            KeyNotFoundError: the dump has none.
        """
        for folder, manifest in self._manifests.items():
            path = folder / str(manifest.get("tensors")) / MODEL_TREE
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                return _named_as_keys(read_json(path))
        msg = f"{self._path} holds no {MODEL_TREE}."
        raise KeyNotFoundError(msg)

    def weights(self) -> Weights:
        """Return the dumped parameters and buffers, which lie with the first run of a session.

        Raises:
            KeyNotFoundError: the dump has none.
            DumpFormatError: their index is damaged.
        """
        having = (f for f in self._manifests if (f / SIDECAR / MSIT_INDEX).is_file())
        folder = next(having, next(iter(self._manifests)))
        return Weights(folder / SIDECAR / MSIT_INDEX, lambda row: read_pth(folder, row))

    def _open(self, run: int) -> RunReader:
        return RunReader(self._path, run, self._folders[run] / SIDECAR)

    def _values(self, reader: RunReader, row: Row) -> torch.Tensor:
        return read_pth(self._folders[reader.run], row)


def _folders(path: Path) -> Iterator[Path]:
    """Yield the folders of runs in order of their names, or the path itself when it is one."""
    if (path / TENSORS).is_dir():
        yield path
    elif path.is_dir():
        for child in sorted(path.iterdir()):
            if FOLDER.fullmatch(child.name) and (child / TENSORS).is_dir():
                yield child


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / SIDECAR / MANIFEST
    try:
        manifest = read_json(path)
    except DumpNotFoundError as error:
        msg = (
            f"{folder} has no index ({SIDECAR}/): another tool wrote it, or it was stopped before "
            "its first forward."
        )
        raise DumpFormatError(msg) from error
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        msg = (
            f"{path} has format_version {version!r}; this release of hf_dumper reads "
            f"version {FORMAT_VERSION}."
        )
        raise DumpFormatError(msg)
    return manifest


def _number(folder: Path) -> int:
    """Return the number of a run, which its facts hold, and its name as long as it has one."""
    for name in (RUN, RUN_PARTIAL, RUN):
        try:
            number = read_json(folder / SIDECAR / name).get("run")
        except DumpNotFoundError:
            continue  # a commit may come between two looks
        if isinstance(number, int) and number >= 0:
            return number
    match = FOLDER.fullmatch(folder.name)
    return int(match[1] or 0) if match else 0


def _mixed(path: Path, folders: list[Path]) -> DumpFormatError:
    shown = ", ".join(folder.name for folder in folders[:8])
    more = ", ..." if len(folders) > 8 else ""
    return DumpFormatError(
        f"{path} holds dumps of several models or sessions: {shown}{more}. Open one of them."
    )


def _named_as_keys(tree: dict[str, Any]) -> dict[str, Any]:
    try:
        children = [_named_as_keys(child) for child in tree["children"]]
        return {"name": canonical(tree["name"]), "type": tree["type"], "children": children}
    except (AttributeError, KeyError, TypeError) as error:
        msg = f"{MODEL_TREE} is damaged: {error!r}"
        raise DumpFormatError(msg) from error
