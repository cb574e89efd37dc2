"""What a repository holds at one commit, and whether a file here is the one there."""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from hf_dumper.core.names import near
from hf_dumper.errors import HubError
from hf_dumper.hub.client import Hub
from hf_dumper.hub.names import RepoName, check_path

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository.

    Attributes:
        path: Where it is in the repository.
        size: In bytes.
        digest: sha256 of an LFS file, else the sha1 that git has of it, in hexadecimal.
        is_lfs: Which of the two.
        is_xet: Whether the hub can also send it by the xet protocol.
    """

    path: str
    size: int
    digest: str
    is_lfs: bool
    is_xet: bool = False

    def is_at(self, place: Path) -> bool:
        """Tell whether the file at a place has the size and the digest of this one."""
        return place.is_file() and place.stat().st_size == self.size and self._is_of(place)

    def _is_of(self, place: Path) -> bool:
        blob = b"" if self.is_lfs else b"blob %d\0" % self.size
        hasher = hashlib.sha256() if self.is_lfs else hashlib.sha1(blob, usedforsecurity=False)
        with place.open("rb") as file:
            while block := file.read(1 << 20):
                hasher.update(block)
        return hasher.hexdigest() == self.digest


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at one commit, by path."""

    commit: str
    files: Mapping[str, RemoteFile]


def list_files(hub: Hub, repo: RepoName) -> Listing:
    """Ask a hub what a repository holds; under HF_HUB_OFFLINE what it held when last asked.

    Raises:
        HubError: one line that says why it does not tell, or a file that would leave any folder.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _remembered(repo)

    def asked() -> Listing:
        info: Any = hub.api.repo_info(repo.id, repo_type=repo.kind, revision=repo.revision)
        tree: Any = hub.api.list_repo_tree(
            repo.id, repo_type=repo.kind, revision=info.sha, recursive=True
        )
        found = [_file(entry) for entry in tree if hasattr(entry, "blob_id")]
        return Listing(info.sha, {file.path: file for file in found})

    found = hub.ask(repo, asked)
    _remember(repo, found)
    return found


def _memory(repo: RepoName) -> Path:
    """Return where the listing of a revision is kept."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HOME).expanduser() / "hf_dumper" / "listings"
    return folder / quote(f"{repo.kind}s/{repo.id}@{repo.revision}.json", safe="")


def _remember(repo: RepoName, listing: Listing) -> None:
    place = _memory(repo)
    unfinished = place.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
    with suppress(OSError):  # a cache that cannot be written is none, and no harm
        place.parent.mkdir(parents=True, exist_ok=True)
        files = [asdict(file) for file in listing.files.values()]
        unfinished.write_text(json.dumps({"commit": listing.commit, "files": files}))
        unfinished.replace(place)


def _remembered(repo: RepoName) -> Listing:
    try:
        held = json.loads(_memory(repo).read_text(encoding="utf-8"))
        files = [RemoteFile(**file) for file in held["files"]]
        return Listing(str(held["commit"]), {check_path(file.path): file for file in files})
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{repo}: HF_HUB_OFFLINE is set, and what it holds is not known from before: unset it"
        msg += " once, so that `hf-dumper download` or open_dump() can ask."
        raise HubError(msg) from error


def chosen(
    files: Iterable[RemoteFile], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[RemoteFile]:
    """Return the files that match a pattern of `include`, or any, and none of `exclude`.

    Raises:
        HubError: nothing is left, or a pattern of `include` matches nothing.
    """
    from huggingface_hub.utils import filter_repo_objects

    every = list(files)
    for pattern in include:
        if not list(filter_repo_objects([f.path for f in every], allow_patterns=[pattern])):
            hint = near(pattern, [f.path for f in every])
            msg = f"No file matches --include {pattern!r}.{hint}"
            raise HubError(msg)
    found: list[RemoteFile] = list(
        filter_repo_objects(
            every,
            allow_patterns=list(include) or None,
            ignore_patterns=list(exclude) or None,
            key=lambda file: file.path,
        )
    )
    if every and not found:
        msg = "Nothing is left: --exclude takes every file away."
        raise HubError(msg)
    return found


def _file(entry: "RepoFile") -> RemoteFile:
    path, xet = check_path(entry.path), bool(entry.xet_hash)
    if entry.lfs is None:
        return RemoteFile(path, entry.size, entry.blob_id, is_lfs=False, is_xet=xet)
    return RemoteFile(path, entry.lfs.size, entry.lfs.sha256, is_lfs=True, is_xet=xet)
