"""`hf-dumper download`: a repository of a hub or of a mirror, checked."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as SpeedColumn
from typer import Argument, Option

from hf_dumper.cli.failures import DONE
from hf_dumper.cli.flat import flat
from hf_dumper.cli.options import Json, Names
from hf_dumper.cli.terminal import calm, print_json, stdout

if TYPE_CHECKING:
    from hf_dumper.hub.client import Hub
    from hf_dumper.hub.counter import OnBytes
    from hf_dumper.hub.download import Downloaded


@dataclass(frozen=True)
class HubOptions:
    """Which hub, and who asks."""

    endpoint: Annotated[
        str | None,
        Option(
            metavar="URL|hf-mirror",
            help="Address of a mirror.",
            show_default="HF_ENDPOINT, else the hub",
        ),
    ] = None
    token: Annotated[
        str | None,
        Option(
            help="For gated and private repositories.",
            show_default="that of `hf auth login`, except for --endpoint",
        ),
    ] = None

    def hub(self) -> "Hub":
        """Return the hub; waits are told on stderr."""
        from hf_dumper.hub.client import Hub
        from hf_dumper.hub.retry import Patience

        return Hub(self.endpoint, self.token, Patience(tell=_tell))


@dataclass(frozen=True)
class Selection:
    """What of the repository, and where to."""

    revision: Annotated[str | None, Option(help="Branch, tag or commit.", show_default="main")] = (
        None
    )
    include: Annotated[
        Names, Option(metavar="PATTERN", help="Only these files; may be given several times.")
    ] = None
    exclude: Annotated[
        Names, Option(metavar="PATTERN", help="Not these files; may be given several times.")
    ] = None
    local_dir: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="Where to.", show_default="the cache of the hub"),
    ] = None
    workers: Annotated[int, Option(min=1, max=64, help="Files fetched at once.")] = 8


@flat
def download(
    repo: Annotated[
        str,
        Argument(help="user/name, datasets/user/name or hf://...", show_default=False),
    ],
    selection: Selection,
    hub: HubOptions,
    json: Json = False,
) -> int:
    """Download a model, or a pushed dump, and check every byte; a second time costs nothing."""
    from hf_dumper.hub.download import download as fetch
    from hf_dumper.hub.names import parse_repo

    name = parse_repo(repo, "model", selection.revision)
    folder = selection.local_dir
    with calm(), transfer(f"Downloading {name.id}") as on_bytes:
        done = fetch(
            hub.hub(),
            name,
            folder=folder.expanduser() if folder else None,
            include=selection.include or (),
            exclude=selection.exclude or (),
            workers=selection.workers,
            on_bytes=on_bytes,
        )
    if json:
        print_json(_facts(done))
    else:
        _print(done)
    return DONE


@contextmanager
def transfer(title: str) -> Iterator["OnBytes"]:
    """Show on stderr how many bytes have been carried; nothing in a pipe."""
    columns = BarColumn(30), DownloadColumn(), SpeedColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    bar = Progress(
        "{task.description}",
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=sys.stderr.isatty(),
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _facts(done: "Downloaded") -> dict[str, object]:
    names = ("commit", "files", "nbytes", "fetched", "received", "replaced")
    return {"folder": str(done.folder)} | {name: getattr(done, name) for name in names}


def _print(done: "Downloaded") -> None:
    from hf_dumper.report.numbers import plural, size

    files = f"{plural(done.files, 'file')}, {size(done.nbytes)}"
    news = f"{done.fetched} fetched ({size(done.received)})" if done.fetched else "nothing to fetch"
    console = stdout()
    console.print(f"{files}, all with the hub's checksums: {news}.", soft_wrap=True)
    for path in done.replaced:
        console.print(f"Replaced, since it was another file: {path}", soft_wrap=True)
    console.print(f"Commit {done.commit} is at {done.folder}", soft_wrap=True)


def _tell(line: str) -> None:
    print(f"hf-dumper: {line}", file=sys.stderr)
