"""Repositories as users name them: `org/model`, `datasets/you/dump`, `hf://datasets/you/dump@v1`."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote

from hf_dumper.errors import HubError

MAIN: Final = "main"

_SCHEME: Final = re.compile(r"hf:/{1,2}")  # pathlib makes one slash of two
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_KINDS: Final = {"datasets": "dataset", "models": "model"}


@dataclass(frozen=True, slots=True)
class RepoName:
    """A repository of a hub, and a place inside of it.

    Attributes:
        kind: `model` or `dataset`.
        id: `user/name`; a model may have no user.
        revision: Branch, tag or commit.
        path: Folder in the repository, "" for all of it.
    """

    kind: str
    id: str
    revision: str = MAIN
    path: str = ""

    def __str__(self) -> str:
        """Return the name as the hub's own tools write it."""
        kind = "datasets/" if self.kind == "dataset" else ""
        at = "" if self.revision == MAIN else f"@{self.revision.replace('/', '%2F')}"
        return f"hf://{kind}{self.id}{at}" + (f"/{self.path}" if self.path else "")


def is_hub_url(text: str) -> bool:
    """Tell whether a text names something on a hub: it begins with `hf://`."""
    return _SCHEME.match(text) is not None


def parse_repo(text: str, kind: str, revision: str | None = None) -> RepoName:
    """Return what a text names; `kind` is meant where it says neither `datasets/` nor `models/`.

    Raises:
        HubError: it names no repository, or two revisions.
    """
    parts = _SCHEME.sub("", text.strip(), count=1).strip("/").split("/")
    if parts[0] in _KINDS and len(parts) > 1:
        kind = _KINDS[parts.pop(0)]
    user, name = (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])
    name, _, at = name.partition("@")
    names = [user, name] if user else [name]
    if not all(map(_PART.fullmatch, names)) or (kind == "dataset" and not user):
        msg = f"{text!r} names no repository. Write it as user/name, or hf://datasets/user/name."
        raise HubError(msg)
    if at and revision:
        msg = f"{text!r} names the revision {at!r}, and --revision another: {revision!r}."
        raise HubError(msg)
    path = check_path("/".join(parts[2:])) if len(parts) > 2 else ""
    return RepoName(kind, "/".join(names), unquote(at) or revision or MAIN, path)


def check_path(path: str) -> str:
    """Return a path of a repository, known to stay inside of whatever folder it is put into.

    Raises:
        HubError: it would leave the folder.
    """
    parts = PurePosixPath(path).parts
    plain = path and "\\" not in path and "\0" not in path and "/".join(parts) == path
    if not plain or ".." in parts or path.startswith("/") or ":" in parts[0]:
        msg = f"The hub lists a file named {path!r}, which is no path inside a repository."
        raise HubError(msg)
    return path
