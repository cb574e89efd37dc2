"""`hf-dumper demo`: a dump of the embedded model, in some seconds and without a network."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hf_dumper.cli.failures import DONE, FAILED
from hf_dumper.cli.options import ModelOptions
from hf_dumper.cli.terminal import calm, stdout

PROMPTS = Path(__file__).parents[1] / "assets" / "demo_prompts.jsonl"
TOKENS = 16


def demo(
    dump: Annotated[
        Path | None,
        typer.Option(
            "--dump",
            "--dump-path",
            metavar="FOLDER",
            help="Where to.",
            show_default="hf_dump_demo_<time>",
        ),
    ] = None,
) -> int:
    """Dump the small model that comes with the package, and look into the dump."""
    from hf_dumper.cli.models import DEMO, load_model
    from hf_dumper.cli.run import dump_all, place
    from hf_dumper.cli.sources import Prompts
    from hf_dumper.config import DumpConfig
    from hf_dumper.prompts.files import load_prompts

    folder = dump or Path(f"hf_dump_demo_{datetime.now():%Y%m%d_%H%M%S}")
    config = place(DumpConfig(folder, "all", dump_statistics_mode=2))
    prompts = load_prompts(PROMPTS)
    model, tokenizer = load_model(DEMO, ModelOptions(dtype="float32"))
    console = stdout()
    kind = f"a {type(model).__name__} of {model.num_parameters():,} parameters"
    console.print(f"The embedded model, {kind} in float32, continues {len(prompts)} prompts:")
    console.print()
    with calm():
        source = Prompts(prompts, {"max_new_tokens": TOKENS}, chat=False)
        results = dump_all(model, tokenizer, source, config, console)
    whole = _show(folder)
    return DONE if whole and all(result.run is not None for result in results) else FAILED


def _show(folder: Path) -> bool:
    """Print the dump and how to open it; return whether all of it is there."""
    from hf_dumper.cli.inspect import open_indexed
    from hf_dumper.report.terminal import overview, summary, tree

    console = stdout()
    with open_indexed(folder) as reader:
        runs = reader.runs()
        console.print()
        console.print(overview(reader))
        console.print(f"\nRun {runs[0]}, token 0, the prefill:")
        console.print(tree(reader, runs[0], 0), soft_wrap=True)
        whole = all(summary(reader, run)["complete"] for run in runs)
    console.print()
    for line in _next_steps(folder):
        console.print(line, soft_wrap=True)
    return whole


def _next_steps(folder: Path) -> list[Text]:
    from hf_dumper.cli.run import quoted

    path, module = quoted(folder), "model.layers.0.mlp"
    return [
        Text("The dump is in ").append(str(folder), "bold cyan").append(". Open it in the shell:"),
        Text(f"  hf-dumper inspect {path} --run 1 --token 3"),
        Text(f"  hf-dumper show {path} {module} --slot output"),
        Text("or in Python:"),
        Text("  from hf_dumper import open_dump"),
        Text(f"  dump = open_dump({str(folder)!r})"),
        Text(f'  dump.load("{module}", "output", token=3, run=0)  # a torch.Tensor'),
        Text("  dump.statistics(run=0).to_pandas()                         # a row per tensor"),
        Text("or with a model of your own:"),
        Text('  hf-dumper run MODEL --prompt "..." --self-check'),
    ]
