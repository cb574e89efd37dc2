"""The files of a model, in a folder here or in a repository of the hub."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

from hf_dumper.core.json_object import json_object
from hf_dumper.errors import ModelError
from hf_dumper.models.headers import Header, read_header, tensor_header

_HIDDEN: Final = (".git", ".cache", "__pycache__")


class ModelFiles(Protocol):
    """Names are relative and have slashes; sizes are in bytes, None where the hub tells none."""

    @property
    def name(self) -> str:
        """Folder or repository."""

    @property
    def sizes(self) -> Mapping[str, int | None]:
        """Sizes of all files by name."""

    def path(self, name: str) -> Path:
        """Return where a file lies here; one of the hub is downloaded."""

    def header(self, name: str) -> Header:
        """Return the tensors of a safetensors file; no weights are read or downloaded."""


class FolderFiles:
    """A folder here."""

    def __init__(self, folder: Path) -> None:
        """Look nothing up yet."""
        self.name = str(folder)
        self._folder = folder

    @cached_property
    def sizes(self) -> Mapping[str, int | None]:
        """Sizes by name; hidden folders of tools are left out."""
        paths = sorted(p for p in self._folder.rglob("*") if p.is_file())
        names = {p.relative_to(self._folder).as_posix(): p for p in paths}
        return {n: p.stat().st_size for n, p in names.items() if n.split("/")[0] not in _HIDDEN}

    def path(self, name: str) -> Path:
        """Return where a file lies."""
        return self._folder / name

    def header(self, name: str) -> Header:
        """Return the tensors of a safetensors file.

        Raises:
            ModelError: it is damaged.
        """
        return read_header(self._folder / name)


class HubFiles:
    """A repository of the hub, at one commit."""

    def __init__(self, repo: str, revision: str | None = None) -> None:
        """Ask the hub for the list of files."""
        from huggingface_hub import HfApi

        self.name = repo
        self._api = HfApi()
        info = self._api.model_info(repo, revision=revision, files_metadata=True)
        self.revision = info.sha
        self.sizes: Mapping[str, int | None] = {
            s.rfilename: s.size for s in info.siblings or () if is_safe(s.rfilename)
        }

    def path(self, name: str) -> Path:
        """Return where a file lies in the cache; it is downloaded if need be."""
        return Path(self._api.hf_hub_download(self.name, name, revision=self.revision))

    def header(self, name: str) -> Header:
        """Return the tensors of a safetensors file, of which the hub sends the beginning only.

        Raises:
            ModelError: it is damaged.
        """
        from huggingface_hub.errors import SafetensorsParsingError

        parse = self._api.parse_safetensors_file_metadata
        try:
            entries = parse(self.name, name, revision=self.revision).tensors.items()
            return [tensor_header(n, t.dtype, t.shape, t.data_offsets, name) for n, t in entries]
        except (SafetensorsParsingError, ValueError) as error:
            msg = f"The header of {name} of {self.name!r} cannot be read: {error}."
            raise ModelError(msg) from error


def is_safe(name: str) -> bool:
    """Tell whether a relative name stays inside of its folder."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def read_json(files: ModelFiles, name: str) -> dict[str, Any]:
    """Return the object in a JSON file, {} where there is no such file.

    Raises:
        ModelError: it is damaged, or holds something else.
    """
    if name not in files.sizes:
        return {}
    try:
        return json_object(files.path(name).read_bytes())
    except ValueError as error:
        msg = f"{name} of {files.name!r} {error}."
        raise ModelError(msg) from error
