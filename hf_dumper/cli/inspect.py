"""`hf-dumper inspect`: what is in a dump."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_dumper.cli.failures import DONE
from hf_dumper.cli.options import Dump, Json
from hf_dumper.cli.terminal import Work, print_json, stdout
from hf_dumper.errors import DumpFormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_dumper.report.terminal import Entry, IndexedReader

Run = Annotated[int | None, typer.Option(help="Which run.", show_default="the first")]
Token = Annotated[int | None, typer.Option(help="Which token.", show_default="the first")]


def inspect(
    dump: Dump,
    run: Run = None,
    token: Token = None,
    lines: Annotated[bool, typer.Option("--lines", help="Plain lines, one per tensor.")] = False,
    unfold: Annotated[bool, typer.Option("--all", help="Show repeated layers, too.")] = False,
    json: Json = False,
) -> int:
    """Show the runs of a dump, and the modules of a token with statistics of their tensors."""
    with open_indexed(dump) as reader:
        runs = reader.runs()
        chosen = first_run(reader, run)
        if lines:
            _print_lines(reader, chosen, token)
        elif json:
            print_json(_as_dict(reader, chosen, token))
        else:
            _print(reader, chosen, token, fold=not unfold)
            _print_choices(reader, chosen, runs)
    return DONE


def open_indexed(path: Path) -> "IndexedReader":
    """Open a dump that has an index.

    Raises:
        DumpFormatError: the dump is of a kind whose reader has none.
    """
    from hf_dumper.report.terminal import IndexedReader
    from hf_dumper.store import open_dump

    reader = open_dump(path.expanduser())
    if not isinstance(reader, IndexedReader):
        msg = f"{str(path)!r} is a dump without an index, so it cannot be shown."
        raise DumpFormatError(msg)
    return reader


def first_run(reader: "IndexedReader", run: int | None) -> int | None:
    """Return the run that was asked for, else the first; None when there are none.

    Raises:
        KeyNotFoundError: there is no such run.
    """
    if run is not None:
        reader.run_info(run)
        return run
    return next(iter(reader.runs()), None)


def first_token(reader: "IndexedReader", run: int, token: int | None) -> int:
    """Return the token that was asked for, else the first that has records."""
    from hf_dumper.report.terminal import tokens

    return token if token is not None else next(iter(tokens(reader, run)), 0)


def as_dict(entry: "Entry") -> dict[str, Any]:
    """Return a record as JSON-ready values."""
    facts = entry._asdict()
    return {**facts.pop("key")._asdict(), **facts.pop("statistics"), **facts}


def _print(reader: "IndexedReader", run: int | None, token: int | None, *, fold: bool) -> None:
    from hf_dumper.report.terminal import overview, tree

    console = stdout()
    if run is None:
        console.print(overview(reader))
        return
    chosen = first_token(reader, run, token)
    with Work("Computing statistics") as work:
        shown = tree(reader, run, chosen, fold=fold, on_progress=work.update)
    console.print(overview(reader))
    which = "token 0, the prefill" if chosen == 0 else f"token {chosen}"
    console.print(f"\nRun {run}, {which}:")
    console.print(shown, soft_wrap=True)


def _print_choices(reader: "IndexedReader", run: int | None, runs: "Sequence[int]") -> None:
    from hf_dumper.report.terminal import ranges, tokens

    if run is None:
        return
    have = tokens(reader, run)
    others = [f"--run {ranges(runs)}"] if len(runs) > 1 else []
    others += [f"--token {ranges(have)}"] if len(have) > 1 else []
    if others:
        stdout().print(f"There is more: {' and '.join(others)}.", style="dim")


def _print_lines(reader: "IndexedReader", run: int | None, token: int | None) -> None:
    from hf_dumper.report.terminal import lines

    if run is None:
        return
    with Work("Computing statistics") as work:
        shown = list(lines(reader, run, first_token(reader, run, token), on_progress=work.update))
    print(*shown, sep="\n")


def _as_dict(reader: "IndexedReader", run: int | None, token: int | None) -> dict[str, Any]:
    from hf_dumper.report.terminal import entries, summary

    facts: dict[str, Any] = {
        "path": str(reader.path),
        "manifest": dict(reader.manifest),
        "runs": [summary(reader, number) for number in reader.runs()],
        "run": run,
        "token": None if run is None else first_token(reader, run, token),
        "records": [],
    }
    if run is not None:
        facts["records"] = [as_dict(e) for e in entries(reader, run, facts["token"])]
    return facts
