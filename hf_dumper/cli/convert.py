"""`hf-dumper convert`: one layout of a dump made from another."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hf_dumper.cli.failures import DONE, FAILED
from hf_dumper.cli.inspect import open_indexed
from hf_dumper.cli.options import Dump, Json
from hf_dumper.cli.terminal import Work, print_json, stdout


class Layout(StrEnum):
    """What a dump can be converted to."""

    native = "native"
    msit = "msit"
    npy = "npy"


def convert(
    dump: Dump,
    out: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    to: Annotated[Layout, typer.Option(help="What to make of it.", show_default=False)],
    json: Json = False,
) -> int:
    """Write a dump in another layout: native, msit (.pth files) or npy (NumPy files)."""
    from hf_dumper.report.numbers import plural
    from hf_dumper.store.convert import convert as convert_dump

    out = out.expanduser()
    with open_indexed(dump) as reader, Work(f"Converting {dump}") as work:
        infos = {run: reader.run_info(run) for run in reader.runs()}
        total = sum(reader.index(run).num_rows for run in infos)
        done = 0

        def count(written: int) -> None:
            nonlocal done
            done += written
            work.update(done, total)

        convert_dump(reader, out, to, count)
    incomplete = [run for run, info in infos.items() if info.get("complete") is not True]
    facts = {"path": str(out), "layout": str(to), "runs": len(infos), "records": total}
    if json:
        print_json(facts | {"incomplete": incomplete})
    else:
        what = f"{plural(total, 'record')} of {plural(len(infos), 'run')}"
        stdout().print(f"{what}: at {out}, layout {to}.")
        if incomplete:
            listed = ", ".join(map(str, incomplete))
            stdout().print(f"Not whole, as in the dump they come from: runs {listed}.")
    return FAILED if incomplete else DONE
