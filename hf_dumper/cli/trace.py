"""`hf-dumper trace`: a generation, token by token."""

from typing import Annotated

import typer

from hf_dumper.cli.failures import DONE, FAILED
from hf_dumper.cli.inspect import first_run, open_indexed
from hf_dumper.cli.options import Dump, Json
from hf_dumper.cli.terminal import print_json, stdout
from hf_dumper.errors import KeyNotFoundError

Run = Annotated[int | None, typer.Option(help="Which run.", show_default="the first")]


def trace(dump: Dump, run: Run = None, json: Json = False) -> int:
    """Show how each token came about: what went in, the likeliest candidates, what was chosen."""
    from hf_dumper.report.trace import trace_facts, trace_lines

    with open_indexed(dump) as reader:
        chosen = first_run(reader, run)
        if chosen is None:
            msg = f"There are no runs in {reader.path}."
            raise KeyNotFoundError(msg)
        facts = trace_facts(reader, chosen)
        others = len(reader.runs()) > 1 and run is None
    if json:
        print_json(facts)
    else:
        console = stdout()
        for line in trace_lines(facts):
            console.print(line, soft_wrap=True)
        if others:
            console.print("There are more runs: --run chooses one.", style="dim")
    return DONE if facts["complete"] else FAILED
