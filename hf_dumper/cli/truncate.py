"""`hf-dumper truncate`: the first layers of a model as a checkpoint of its own."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_dumper.cli.failures import DONE
from hf_dumper.cli.model_files import opened
from hf_dumper.cli.models import load_empty
from hf_dumper.cli.options import Json
from hf_dumper.cli.run import Model
from hf_dumper.cli.terminal import Work, calm, print_json, stdout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def truncate(
    model: Model,
    out: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    layers: Annotated[int, typer.Option(min=1, help="Layers to keep.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model's own code.")
    ] = False,
    json: Json = False,
) -> int:
    """Write the first layers of a model as a smaller model; weights are copied, not loaded."""
    from hf_dumper.models.truncate import truncate as truncate_model
    from hf_dumper.report.numbers import plural, size

    def empty(name: str) -> "PreTrainedModel":
        return load_empty(name, revision=revision, trust_remote_code=trust_remote_code)

    with Work(f"Truncating {model}"), opened(model, revision) as files, calm():
        done = truncate_model(files, out.expanduser(), layers, empty)
    if json:
        print_json(asdict(done))
        return DONE
    print_ = stdout().print
    print_(f"{plural(done.kept, 'tensor')}, {size(done.bytes)}, at {done.path}.", soft_wrap=True)
    print_(f"left out    {plural(done.left_out, 'tensor')}")
    for change in done.changes:
        print_(f"changed     {change}", soft_wrap=True)
    for name in done.not_copied:
        print_(f"not copied  {name}: weights in another format", soft_wrap=True)
    return DONE
