"""A folder of a repository whose files arrive when they are asked for."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hf_dumper.errors import HubError
from hf_dumper.hub.client import Hub
from hf_dumper.hub.counter import Counter
from hf_dumper.hub.listing import RemoteFile, list_files
from hf_dumper.hub.names import RepoName
from hf_dumper.hub.place import Place
from hf_dumper.hub.retry import TransferError

SUFFIX: Final = ".safetensors"


class HubFolder:
    """One commit of a repository as a folder that fills when it is read.

    Whole files have the digest that the hub lists; pieces of files have the length that was asked
    for, of a file with the size that is listed. What has arrived stays for the next time.

    Attributes:
        repo: What it is a folder of.
        path: The folder here; all its subfolders exist, none of its files needs to.
        received: Bytes that came over the network.
    """

    def __init__(self, hub: Hub, repo: RepoName) -> None:
        """Ask the hub what there is; nothing else is fetched yet.

        Raises:
            HubError: one line that says why not.
        """
        from huggingface_hub import constants

        self.repo, self._hub = repo, hub
        with hub.settings():
            listing = list_files(hub, repo)
        self._files = listing.files
        cache = Path(constants.HF_HOME).expanduser() / "hf_dumper"
        root = cache / f"{repo.kind}s--{repo.id.replace('/', '--')}" / listing.commit
        self._place = Place(hub, repo, listing.commit, root)
        self._root = root
        self._counter = Counter()
        self._lock = threading.Lock()
        self._pieces = root / ".pieces"
        self.path = root / repo.path if repo.path else root
        for name in self.names():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)

    @property
    def received(self) -> int:
        """Bytes that came over the network."""
        return self._counter.received

    def names(self) -> Iterator[str]:
        """Yield the paths of all files, relative to the folder."""
        start = f"{self.repo.path}/" if self.repo.path else ""
        return (path.removeprefix(start) for path in self._files if path.startswith(start))

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, None if there is none of that name."""
        file = self._file(name)
        return file.size if file else None

    def is_here(self, name: str) -> bool:
        """Tell whether a file has arrived as a whole."""
        return (self.path / name).is_file()

    def fetch(self, *names: str) -> None:
        """Make sure that files are here; a name that the repository lacks is passed over.

        Raises:
            HubError: one of them could not be fetched.
        """
        for file in filter(None, map(self._file, names)):
            with self._lock:
                if not self._place.of(file).is_file():
                    self._fetch(file)

    def piece(self, name: str, offset: int, nbytes: int) -> Path | None:
        """Return a file with `nbytes` bytes of another one, from `offset` on.

        None says that this hub gives whole files only.

        Raises:
            HubError: the file is not listed, ends before, or could not be fetched.
        """
        file = self._file(name)
        if file is None or offset < 0 or nbytes < 0 or offset + nbytes > file.size:
            msg = f"{self.repo} has no {nbytes} bytes at byte {offset} of a file {name!r}."
            raise HubError(msg)
        place = self._pieces / file.digest / f"{offset}-{nbytes}{SUFFIX}"
        with self._lock:
            if not place.is_file() or place.stat().st_size != nbytes:
                place.parent.mkdir(parents=True, exist_ok=True)
                body = self._hub.ask(self.repo, lambda: self._range(file, offset, nbytes))
                if body is None:
                    return None
                self._keep(body, place)
        return place

    def pieces_of(self, name: str) -> int:
        """Return how many pieces of a file are here."""
        file = self._file(name)
        folder = self._pieces / file.digest if file else None
        return len(list(folder.glob(f"*{SUFFIX}"))) if folder and folder.is_dir() else 0

    def drop_pieces(self, name: str) -> None:
        """Remove the pieces of a file, which is here as a whole."""
        if file := self._file(name):
            shutil.rmtree(self._pieces / file.digest, ignore_errors=True)

    def _file(self, name: str) -> RemoteFile | None:
        return self._files.get(f"{self.repo.path}/{name}" if self.repo.path else name)

    def _fetch(self, file: RemoteFile) -> None:
        with self._hub.settings():
            self._place.check_room([file])
            self._place.fetch(file, self._counter)

    def _keep(self, body: bytes, place: Path) -> None:
        self._counter.add(len(body))
        unfinished = place.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_bytes(body)
        unfinished.replace(place)

    def _range(self, file: RemoteFile, offset: int, nbytes: int) -> bytes | None:
        from huggingface_hub.utils import get_session, hf_raise_for_status

        last = offset + nbytes - 1
        headers = self._place.headers() | {"Range": f"bytes={offset}-{last}"}
        headers["Accept-Encoding"] = "identity"
        with get_session().stream("GET", self._place.url(file), headers=headers) as response:
            hf_raise_for_status(response)
            if response.status_code == 200:
                return None
            expected = f"bytes {offset}-{last}/{file.size}"
            found = response.headers.get("Content-Range")
            if found != expected:
                msg = f"{file.path}: {expected!r} was asked for, {found!r} is answered"
                raise TransferError(msg)
            body = response.read()
        if len(body) != nbytes:
            msg = f"{file.path}: {nbytes} bytes were asked for, {len(body)} have come"
            raise TransferError(msg)
        return bytes(body)
