"""`hf-dumper demo`: a golden dump, a port that is right and one that is wrong, in one story."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from hf_dumper.cli.failures import DONE, FAILED
from hf_dumper.cli.options import ModelOptions
from hf_dumper.cli.terminal import Work, calm, stdout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_dumper.core.verdicts import Comparison

PROMPTS = Path(__file__).parents[1] / "assets" / "demo_prompts.jsonl"
TOKENS = 8
FAULTY: Final = "model.layers.1.self_attn"
"""The module that is given the fault."""

_GOLDEN, _PORT, _BROKEN = "golden", "bfloat16", "broken"


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
    """Dump the small model of the package, compare a good copy with it, then a broken one."""
    folder = dump or Path(f"hf_dump_demo_{datetime.now():%Y%m%d_%H%M%S}")
    whole = _golden(folder)
    good = _candidate(folder, _PORT, "bfloat16")
    broken = _candidate(folder, _BROKEN, "float32", fault=FAULTY)
    console = stdout()
    console.print()
    for line in _next_steps(folder):
        console.print(line, soft_wrap=True)
    named = broken.divergence is not None and broken.divergence.module == FAULTY
    return DONE if whole and good.passed and named else FAILED


def _golden(folder: Path) -> bool:
    """Dump the reference; return whether all of it is there."""
    from hf_dumper.cli.models import DEMO, load_model
    from hf_dumper.cli.run import dump_all, place
    from hf_dumper.cli.sources import Prompts
    from hf_dumper.config import DumpConfig
    from hf_dumper.prompts import load_prompts

    config = place(DumpConfig(folder / _GOLDEN, "all", dump_statistics_mode=2))
    prompts = load_prompts(PROMPTS)
    model, tokenizer = load_model(DEMO, ModelOptions(dtype="float32"))
    console = stdout()
    kind = f"a {type(model).__name__} of {model.num_parameters():,} parameters"
    _title(console, 1, f"A golden dump: {kind}, in float32, goes on from {len(prompts)} prompts.")
    with calm():
        source = Prompts(prompts, {"max_new_tokens": TOKENS}, chat=False)
        results = dump_all(model, tokenizer, source, config, console)
    whole = _show(folder / _GOLDEN)
    return whole and all(result.run is not None for result in results)


def _show(folder: Path) -> bool:
    """Print what is in the dump; return whether all of it is there."""
    from hf_dumper.cli.inspect import open_indexed
    from hf_dumper.report.terminal import entries, module, overview, summary

    console = stdout()
    with open_indexed(folder) as reader:
        runs = reader.runs()
        console.print()
        console.print(overview(reader))
        console.print(f"\nOne module of run {runs[0]}, token 0, the prefill:")
        console.print(module(entries(reader, runs[0], 0, modules=[FAULTY])))
        return all(summary(reader, run)["complete"] for run in runs)


def _candidate(folder: Path, name: str, dtype: str, *, fault: str | None = None) -> "Comparison":
    """Let another copy of the model follow the golden dump; print how the two compare."""
    from hf_dumper.cli.compare import show_comparison
    from hf_dumper.comparison import compare

    console = stdout()
    console.print()
    if fault is None:
        _title(console, 2, f"The same model in {dtype} follows the golden tokens. Is it right?")
    else:
        what = "turns its rotary embedding the wrong way"
        _title(console, 3, f"The same in {dtype}, but {fault} {what}. Is that found?")
    _follow(folder, name, dtype, fault)
    with Work(f"Comparing {folder / name}"), calm():
        found = compare(folder / _GOLDEN, folder / name)
    show_comparison(found)
    return found


def _follow(folder: Path, name: str, dtype: str, fault: str | None) -> None:
    from hf_dumper.cli.inspect import open_indexed
    from hf_dumper.cli.models import DEMO, load_model
    from hf_dumper.cli.run import dump_all
    from hf_dumper.cli.sources import Golden
    from hf_dumper.config import DumpConfig
    from hf_dumper.prompts import golden_runs

    model, tokenizer = load_model(DEMO, ModelOptions(dtype=dtype))
    with open_indexed(folder / _GOLDEN) as golden, calm(), _planted(model, fault):
        source = Golden(golden, golden_runs(golden))
        config = DumpConfig.from_dict({"dump_path": str(folder / name), **source.selection()})
        dump_all(model, tokenizer, source, config, Console(quiet=True))


@contextmanager
def _planted(model: "PreTrainedModel", fault: str | None) -> Iterator[None]:
    from hf_dumper.testing import turned_rotary

    if fault is None:
        yield
        return
    with turned_rotary(model.get_submodule(fault)):
        yield


def _title(console: Console, number: int, text: str) -> None:
    console.print(Text(f"{number}. {text}", "bold"))
    console.print()


def _next_steps(folder: Path) -> list[Text]:
    from hf_dumper.cli.run import quoted

    golden, broken = quoted(folder / _GOLDEN), quoted(folder / _BROKEN)
    module = "model.layers.0.mlp"
    return [
        Text("The dumps are in ").append(str(folder), "bold cyan").append(". Go on in the shell:"),
        Text(f"  hf-dumper inspect {golden} --run 1 --token 3"),
        Text(f"  hf-dumper show {golden} {module} --slot output"),
        Text(f"  hf-dumper compare {golden} {broken} --report report.csv"),
        Text("or in Python:"),
        Text("  from hf_dumper import compare, open_dump"),
        Text(f"  dump = open_dump({str(folder / _GOLDEN)!r})"),
        Text(f'  dump.load("{module}", "output", token=3, run=0)  # a torch.Tensor'),
        Text(f"  compare(dump, {str(folder / _BROKEN)!r}).divergence"),
        Text("or with a model of your own:"),
        Text('  hf-dumper run MODEL --prompt "..." --token-range all --dump golden'),
        Text("  hf-dumper run MODEL --dtype bfloat16 --follow golden --dump candidate"),
        Text("  hf-dumper compare golden candidate"),
    ]
