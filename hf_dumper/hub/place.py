"""Where the files of a commit belong, and how one of them gets there."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hf_dumper.errors import HubError
from hf_dumper.hub.client import Hub
from hf_dumper.hub.counter import Counter
from hf_dumper.hub.listing import RemoteFile
from hf_dumper.hub.names import RepoName
from hf_dumper.hub.retry import TransferError


class Place:
    """Where the files of one commit lie: in the client's cache, or in a folder."""

    def __init__(self, hub: Hub, repo: RepoName, commit: str, folder: Path | None) -> None:
        """Fetch nothing yet; `folder` None is the cache."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        self._hub, self._repo, self.commit = hub, repo, commit
        name = repo_folder_name(repo_id=repo.id, repo_type=repo.kind)
        self._cache = Path(constants.HF_HUB_CACHE).expanduser() / name
        self._local = folder
        self.folder = folder or self._cache / "snapshots" / commit
        self._blobs = folder / ".cache" / "huggingface" if folder else self._cache / "blobs"
        self._locks = self._blobs if folder else self._cache.parent / ".locks" / name

    def of(self, file: RemoteFile) -> Path:
        """Return where a file belongs."""
        return self.folder / file.path

    def partial(self, file: RemoteFile) -> Path:
        """Return where what has arrived of it is."""
        return self._blobs / f"{file.digest}.hf_dumper.incomplete"

    def partial_size(self, file: RemoteFile) -> int:
        """Return how many bytes of it have arrived."""
        with suppress(OSError):
            return min(self.partial(file).stat().st_size, file.size)
        return 0

    def check_room(self, files: Sequence[RemoteFile]) -> None:
        """Make sure that the disk has room for what is missing.

        Raises:
            HubError: it has not.
        """
        needed = sum(file.size - self.partial_size(file) for file in files)
        there = next(p for p in (self._blobs, *self._blobs.absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free
        if needed > free:
            msg = (
                f"{self._repo}: {needed:,} bytes are missing, and the disk has room for {free:,}. "
                "Free some, leave files out with --exclude, or go elsewhere with --local-dir."
            )
            raise HubError(msg)

    def fetch(self, file: RemoteFile, counter: Counter) -> None:
        """Fetch one file and put it where it belongs.

        Raises:
            HubError: it could not be fetched.
        """
        self._hub.ask(self._repo, lambda: self._fetch(file, counter))

    def finish(self) -> None:
        """Let the cache know which commit the revision is, as offline use needs it."""
        if self._local is None and self._repo.revision != self.commit:
            ref = self._cache / "refs" / self._repo.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(self.commit, encoding="utf-8")

    def _fetch(self, file: RemoteFile, counter: Counter) -> None:
        place = self.of(file)
        if file.is_xet and self._hub.uses_xet:
            self._by_client(file, counter, force=place.exists())
        elif self._local is not None:
            self._by_range(file, counter, place)
        else:
            blob = self._blobs / file.digest
            if not file.is_at(blob):
                self._by_range(file, counter, blob)
            # The blob is there: the client only makes its pointer, in the way of this system.
            self._by_client(file, counter, force=False)
        if not file.is_at(place):
            msg = f"{file.path} is not the file that the hub lists"
            raise TransferError(msg)

    def _by_client(self, file: RemoteFile, counter: Counter, *, force: bool) -> None:
        self._hub.api.hf_hub_download(
            self._repo.id,
            file.path,
            repo_type=self._repo.kind,
            revision=self.commit,
            local_dir=self._local,
            force_download=force,
            tqdm_class=counter.bar(),
        )

    def _by_range(self, file: RemoteFile, counter: Counter, place: Path) -> None:
        """Fetch a file from where it was cut off, and give it its name when its digest is right."""
        from huggingface_hub.utils import WeakFileLock

        partial = self.partial(file)
        for parent in (partial.parent, self._locks):
            parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self._locks / f"{file.digest}.hf_dumper.lock"):
            if not file.is_at(place):
                self._append(file, partial, counter)
                if not file.is_at(partial):
                    partial.unlink()
                    msg = f"{file.path} has arrived with another digest than the hub lists"
                    raise TransferError(msg)
                place.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(place)

    def url(self, file: RemoteFile) -> str:
        """Return the address of the contents of a file."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(
            self._repo.id,
            file.path,
            repo_type=self._repo.kind,
            revision=self.commit,
            endpoint=self._hub.endpoint,
        )

    def headers(self) -> dict[str, str]:
        """Return who asks for contents."""
        from huggingface_hub.utils import build_hf_headers

        return build_hf_headers(token=self._hub.own_token, library_name="hf_dumper")

    def _append(self, file: RemoteFile, partial: Path, counter: Counter) -> None:
        from huggingface_hub.file_download import http_get

        with partial.open("ab") as out:
            here = out.tell() if out.tell() <= file.size else 0
            out.truncate(here)
            try:
                http_get(
                    self.url(file),
                    out,
                    resume_size=here,
                    headers=self.headers(),
                    expected_size=file.size,
                    tqdm_class=counter.bar(),
                )
            except OSError as error:
                if "Consistency check" not in str(error):
                    raise
                out.truncate(0)
                msg = f"{file.path} has arrived with another size than the hub lists"
                raise TransferError(msg) from error
