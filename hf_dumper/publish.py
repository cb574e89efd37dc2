"""A dump to a hub, as a dataset whose index `datasets` loads."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

from hf_dumper.errors import DumpFormatError, HubError
from hf_dumper.hub.client import Hub
from hf_dumper.hub.listing import list_files
from hf_dumper.hub.names import MAIN, RepoName
from hf_dumper.hub.retry import status_of
from hf_dumper.report.card import CARD, TAG, card
from hf_dumper.store import MsitReader, open_dump
from hf_dumper.store.files import TEMPORARY
from hf_dumper.store.findings import DAMAGED
from hf_dumper.store.layout import LOCK
from hf_dumper.store.verify import verify_dump

_OF_THE_HUB: Final = (".gitattributes",)
"""What a hub puts into a new repository itself."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What is on the hub now.

    Attributes:
        repo: Its name, which `open_dump` opens.
        page: Address of the commit.
        commit: Hash of the commit.
        files: How many files of the dump are there, each with the digest of the one here.
        nbytes: Their bytes.
        removed: Files of the repository that were removed.
        incomplete: Run -> why it is not whole, as in the dump.
        verified: Whether every hash of the dump was checked before; None where its layout has none.
    """

    repo: RepoName
    page: str
    commit: str
    files: int
    nbytes: int
    removed: tuple[str, ...]
    incomplete: Mapping[int, str]
    verified: bool | None


def push_dump(
    path: str | PathLike[str],
    repo: RepoName,
    hub: Hub,
    *,
    public: bool = False,
    overwrite: bool = False,
    message: str | None = None,
) -> Pushed:
    """Upload a dump into a dataset repository, which is made if there is none, in one commit.

    The bytes of the dump are hashed first, and what has arrived is compared with the digests here.

    Args:
        path: Folder of the dump.
        repo: Where to; its path is "": `load_dataset` looks for the card at the top.
        hub: Whom to give it.
        public: Whether a new repository is one that everybody can read.
        overwrite: Remove files of the repository that are not of this dump.
        message: Of the commit; None takes a plain one.

    Raises:
        DumpNotFoundError: there is no dump at `path`.
        DumpFormatError: it is damaged, is still being written, or has a link that leaves it.
        HubError: the hub does not take it, or the repository holds something else.
    """
    if repo.path or repo.kind != "dataset":
        msg = f"{repo}: a dump is pushed into a dataset repository of its own, user/name."
        raise HubError(msg)
    folder = Path(path).expanduser()
    verified, incomplete = _checked(folder)
    text = _card(folder, repo, incomplete)
    files = dict(_files(folder))
    with hub.settings():
        _create(hub, repo, public=public)
        strangers = _strangers(hub, repo, files)
        if strangers and not overwrite:
            listed = ", ".join(strangers[:5]) + (", ..." if len(strangers) > 5 else "")
            msg = f"{repo} holds what is not of this dump: {listed}. Use another, or --overwrite."
            raise HubError(msg)
        removed = tuple(name for name in strangers if name != CARD)
        commit = hub.ask(repo, lambda: _commit(hub, repo, files, removed, text, message))
        nbytes = _arrived(hub, repo, commit.oid, files)
    page = str(commit.commit_url)
    return Pushed(repo, page, commit.oid, len(files), nbytes, removed, incomplete, verified)


def _checked(folder: Path) -> tuple[bool | None, Mapping[int, str]]:
    """Return whether all hashes were checked, and which runs are not whole."""
    with open_dump(folder) as reader:
        infos = {run: reader.run_info(run) for run in reader.runs()}
        incomplete = {
            run: str(info.get("incomplete") or "stopped before its end")
            for run, info in infos.items()
            if info.get("complete") is not True
        }
        if isinstance(reader, MsitReader):
            return None, incomplete
    found = verify_dump(folder)
    if found.verdict == DAMAGED:
        problem = found.problems[0]
        msg = f"'{folder}' is damaged, so it is not pushed: {problem.file}: {problem.what}."
        raise DumpFormatError(msg)
    return not found.unchecked, incomplete


def _card(folder: Path, repo: RepoName, incomplete: Mapping[int, str]) -> str:
    with open_dump(folder) as reader:
        return card(reader, repo, incomplete)


def _files(folder: Path) -> list[tuple[str, Path]]:
    found = []
    top = folder.resolve()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.suffix == TEMPORARY:
            continue
        if not path.resolve().is_relative_to(top):
            msg = f"{path} is a link that leaves the dump."
            raise DumpFormatError(msg)
        if name == LOCK:
            _must_be_free(folder)
            continue
        found.append((name, path))
    return found


def _must_be_free(folder: Path) -> None:
    """Make sure that nobody writes the dump; what a crash has left behind does no harm."""
    from hf_dumper.store.lock import lock_dump

    lock_dump(folder)


def _create(hub: Hub, repo: RepoName, *, public: bool) -> None:
    """Make the repository; one that is there, or that the user may not make, is tried as it is."""

    def made() -> None:
        try:
            hub.api.create_repo(repo.id, repo_type=repo.kind, private=not public, exist_ok=True)
            if repo.revision != MAIN:
                hub.api.create_branch(
                    repo.id, repo_type=repo.kind, branch=repo.revision, exist_ok=True
                )
        except Exception as error:
            if status_of(error) != 401:
                raise
            msg = (
                f"{repo}: {hub.endpoint} wants to know who pushes: give --token, or log in with "
                "`hf auth login`."
            )
            raise HubError(msg) from error

    hub.ask(repo, made)


def _strangers(hub: Hub, repo: RepoName, files: Mapping[str, Path]) -> list[str]:
    """Return the files of the repository that are neither of the dump nor of ours or the hub's."""
    there = list_files(hub, repo).files
    known = {*files, CARD, *_OF_THE_HUB}
    found = sorted(there.keys() - known)
    return [*found, CARD] if CARD in there and not _is_our_card(hub, repo) else found


def _is_our_card(hub: Hub, repo: RepoName) -> bool:
    path = hub.ask(
        repo,
        lambda: hub.api.hf_hub_download(repo.id, CARD, repo_type=repo.kind, revision=repo.revision),
    )
    return TAG in Path(path).read_text(encoding="utf-8", errors="replace")


def _commit(
    hub: Hub,
    repo: RepoName,
    files: Mapping[str, Path],
    removed: Iterable[str],
    text: str,
    message: str | None,
) -> Any:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(CARD, text.encode()),
        *(CommitOperationAdd(name, path) for name, path in files.items()),
        *(CommitOperationDelete(name, is_folder=False) for name in removed),
    ]
    return hub.api.create_commit(
        repo.id,
        operations,
        repo_type=repo.kind,
        revision=repo.revision,
        commit_message=message or "Add a dump",
    )


def _arrived(hub: Hub, repo: RepoName, commit: str, files: Mapping[str, Path]) -> int:
    """Return the bytes of the files on the hub, every one of them the one here.

    Raises:
        HubError: one is not.
    """
    there = list_files(hub, RepoName(repo.kind, repo.id, commit)).files
    for name, path in files.items():
        if name not in there or not there[name].is_at(path):
            msg = f"{repo}: {name} has not arrived as it is here. Push again."
            raise HubError(msg)
    return sum(there[name].size for name in files)
