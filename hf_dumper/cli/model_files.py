"""The files of a model by the name that a user types."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hf_dumper.cli.failures import hub_reason, one_line
from hf_dumper.cli.models import DEMO, check_folder
from hf_dumper.errors import HFDumperError, ModelError

if TYPE_CHECKING:
    from hf_dumper.models.files import ModelFiles


@contextmanager
def opened(name: str, revision: str | None = None) -> Iterator["ModelFiles"]:
    """Give the files of a folder, of a repository, or of the embedded model.

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
            yield HubFiles(name, revision)
        except HFDumperError:
            raise
        except Exception as error:
            reason = hub_reason(error) or one_line(f"{type(error).__name__}: {error}")
            msg = f"Cannot read {name!r}: no folder here has that name, and {reason}."
            raise ModelError(msg) from error
