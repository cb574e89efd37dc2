"""`hf-dumper push`: a dump to a hub."""

import sys
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from hf_dumper.cli.download import HubOptions
from hf_dumper.cli.failures import DONE, FAILED
from hf_dumper.cli.flat import flat
from hf_dumper.cli.options import Dump, Json
from hf_dumper.cli.terminal import Work, calm, print_json, stdout

if TYPE_CHECKING:
    from hf_dumper.publish import Pushed


@flat
def push(
    dump: Dump,
    repo: Annotated[
        str, Argument(help="user/name, a dataset repository; made if new.", show_default=False)
    ],
    hub: HubOptions,
    revision: Annotated[
        str | None, Option(help="Branch, made if new.", show_default="main")
    ] = None,
    public: Annotated[
        bool, Option("--public", help="Let everybody read a repository that is made.")
    ] = False,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Remove what the repository holds besides.")
    ] = False,
    message: Annotated[str | None, Option(help="Of the commit.")] = None,
    json: Json = False,
) -> int:
    """Upload a dump as a dataset, with a card; open_dump("hf://...") reads it from there."""
    from hf_dumper.hub.names import parse_repo
    from hf_dumper.publish import push_dump

    name = parse_repo(repo, "dataset", revision)
    bars = sys.stderr.isatty()
    with Work(f"Pushing {dump}") as work, calm(bars=bars):
        if bars:
            work.hide()
        done = push_dump(dump, name, hub.hub(), public=public, overwrite=overwrite, message=message)
    if json:
        print_json(_facts(done))
    else:
        _print(done)
    return FAILED if done.incomplete else DONE


def _facts(done: "Pushed") -> dict[str, object]:
    names = ("page", "commit", "files", "nbytes", "removed", "verified")
    incomplete = {str(run): why for run, why in done.incomplete.items()}
    facts = {name: getattr(done, name) for name in names}
    return {"url": str(done.repo)} | facts | {"incomplete": incomplete}


def _print(done: "Pushed") -> None:
    from hf_dumper.report.numbers import plural, size

    console = stdout()
    what = f"{plural(done.files, 'file')}, {size(done.nbytes)}"
    console.print(f"{what}, arrived as they are here: {done.page}", soft_wrap=True)
    if done.verified is None:
        console.print("Its layout has no hashes that could be checked first.", soft_wrap=True)
    elif not done.verified:
        console.print("Some records have no hash that could be checked first.", soft_wrap=True)
    for run, why in done.incomplete.items():
        console.print(f"Run {run} is not whole: {why}", soft_wrap=True)
    for name in done.removed:
        console.print(f"Removed: {name}", soft_wrap=True)
    console.print(f'open_dump("{done.repo}") reads it from there.', soft_wrap=True)
