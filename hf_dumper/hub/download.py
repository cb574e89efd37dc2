"""A repository, or the part of it that is wanted, in the hub's cache or in a folder.

Contents are fetched with the client of the hub; what it lacks is added here: a file that was cut
off goes on where it stopped, also in another process, what may pass is tried again, and every file
is checked against the digest that the hub lists, also one that was here before.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hf_dumper.errors import HubError
from hf_dumper.hub.client import Hub
from hf_dumper.hub.counter import Counter, OnBytes
from hf_dumper.hub.listing import RemoteFile, chosen, list_files
from hf_dumper.hub.names import RepoName
from hf_dumper.hub.place import Place

WORKERS: Final = 8


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What is here now.

    Attributes:
        folder: Where the files are.
        commit: Hash of the commit that they are of.
        files: How many there are; each has the digest that the hub lists.
        nbytes: Their bytes.
        fetched: How many of them were fetched; the others were here.
        received: Bytes that came over the network.
        replaced: Paths of files that were here and were not those of the commit.
    """

    folder: Path
    commit: str
    files: int
    nbytes: int
    fetched: int
    received: int
    replaced: tuple[str, ...]


def download(
    hub: Hub,
    repo: RepoName,
    *,
    folder: Path | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    workers: int = WORKERS,
    on_bytes: OnBytes | None = None,
) -> Downloaded:
    """Fetch what is not here yet of a repository, and check all of it.

    Args:
        hub: Whom to ask.
        repo: What to fetch; with a path, that folder of it only.
        folder: Where to; None is the cache of the hub's client, where transformers finds it.
        include: Patterns of files to fetch, as for the shell; none means all.
        exclude: Patterns of files to leave out.
        workers: Files that are fetched at once.
        on_bytes: Told of progress, from several threads.

    Raises:
        HubError: one line that says why not. What has arrived is kept.
    """
    with hub.settings():
        listing = list_files(hub, repo)
        inside = [f for f in listing.files.values() if _is_inside(f.path, repo.path)]
        if not inside:
            msg = f"{repo}: there is no file{' in that folder' if repo.path else ''}."
            raise HubError(msg)
        place = Place(hub, repo, listing.commit, folder)
        return _fetch_all(place, chosen(inside, include, exclude), workers, on_bytes)


def _fetch_all(
    place: Place, wanted: Sequence[RemoteFile], workers: int, on_bytes: OnBytes | None
) -> Downloaded:
    missing = [file for file in wanted if not file.is_at(place.of(file))]
    replaced = tuple(file.path for file in missing if place.of(file).exists())
    place.check_room(missing)
    total = sum(file.size for file in missing)
    counter = Counter(on_bytes, sum(map(place.partial_size, missing)), total)
    _each(lambda file: place.fetch(file, counter), missing, workers, counter)
    place.finish()
    nbytes = sum(file.size for file in wanted)
    return Downloaded(
        place.folder, place.commit, len(wanted), nbytes, len(missing), counter.received, replaced
    )


def _is_inside(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(f"{folder}/")


def _each(
    fetch: Callable[[RemoteFile], None],
    files: Sequence[RemoteFile],
    workers: int,
    counter: Counter,
) -> None:
    """Fetch files at once, large ones first; the first error stops the others."""
    ordered = sorted(files, key=lambda file: -file.size)
    with ThreadPoolExecutor(max(1, min(workers, len(files)))) as pool:
        try:
            for done in as_completed([pool.submit(fetch, file) for file in ordered]):
                done.result()
        except BaseException:
            counter.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
