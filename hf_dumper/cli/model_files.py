"""The files of a model by the name that a user types."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hf_dumper.cli.failures import hub_reason
from hf_dumper.cli.models import DEMO, check_folder, must_be_cached
from hf_dumper.errors import HFDumperError, ModelError

if TYPE_CHECKING:
    from hf_dumper.models.files import ModelFiles


@contextmanager
def opened(name: str, revision: str | None = None) -> Iterator["ModelFiles"]:
    """Give the files of a folder, of a repository, or of the embedded model.

    Where the hub is out of reach, the files of the repository that are in the cache stand for it;
    their name is then the folder of the cache.

    Raises:
        ModelError: there is no such model, or the hub fails now or inside the block.
    """
    from hf_dumper.model import DEMO_MODEL
    from hf_dumper.models.files import FolderFiles, HubFiles

    if name == DEMO:
        yield FolderFiles(Path(DEMO_MODEL))
    elif check_folder(name):
        yield FolderFiles(Path(name).expanduser())
    else:
        try:
            cached = _cached(name, revision)
            yield HubFiles(name, revision) if cached is None else FolderFiles(cached)
        except HFDumperError:
            raise
        except Exception as error:
            reason = hub_reason(error)
            if reason is None:
                raise
            msg = f"Cannot read {name!r}: no folder here has that name, and {reason}."
            raise ModelError(msg) from error


def _cached(name: str, revision: str | None) -> Path | None:
    """Return the folder of a repository in the cache if that is all there is to be had."""
    if not must_be_cached(name, revision):
        return None
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, local_files_only=True))
