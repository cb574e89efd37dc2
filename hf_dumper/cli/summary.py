"""`hf-dumper summary`: modules, shapes, parameters and bytes of a model, without its weights."""

from typing import Annotated

import typer

from hf_dumper.cli.failures import DONE
from hf_dumper.cli.models import load_empty
from hf_dumper.cli.options import Json
from hf_dumper.cli.run import Model
from hf_dumper.cli.terminal import Work, calm, print_json, stdout


def summary(
    model: Model,
    depth: Annotated[
        int | None, typer.Option(min=0, help="How deep, 0 is the model.", show_default="all")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Length of the text.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Rows of the batch.")] = 1,
    unfold: Annotated[bool, typer.Option("--all", help="Show repeated layers, too.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model's own code.")
    ] = False,
    json: Json = False,
) -> int:
    """Show modules, output shapes, parameters and bytes of a model; no weights are needed."""
    empty = load_empty(model, trust_remote_code=trust_remote_code)
    with Work(f"Outlining {model}"), calm():
        from hf_dumper.capture.outline import outline

        found = outline(empty, rows=batch, tokens=tokens)
    if json:
        facts = found.to_dict()
        kept = (m for m in facts.pop("modules") if depth is None or m["depth"] <= depth)
        print_json({**facts, "modules": list(kept)})
    else:
        from hf_dumper.report.summary import SummaryTable

        stdout().print(SummaryTable(found, depth=depth, fold=not unfold), soft_wrap=True)
    return DONE
