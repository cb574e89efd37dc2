"""The commands of `hf-dumper`."""

from typing import Annotated

import typer

from hf_dumper import __version__
from hf_dumper.cli.bad_cases import bad_cases, text_metrics
from hf_dumper.cli.compare import compare, judge
from hf_dumper.cli.convert import convert
from hf_dumper.cli.demo import demo
from hf_dumper.cli.describe import describe
from hf_dumper.cli.diff_config import diff_config
from hf_dumper.cli.download import download
from hf_dumper.cli.failures import guarded
from hf_dumper.cli.inspect import inspect
from hf_dumper.cli.push import push
from hf_dumper.cli.run import run
from hf_dumper.cli.show import show
from hf_dumper.cli.summary import summary
from hf_dumper.cli.trace import trace
from hf_dumper.cli.truncate import truncate
from hf_dumper.cli.verify import verify

app = typer.Typer(
    help="Dump what happens inside a transformers model, and find where two dumps part.",
    epilog="Begin with `hf-dumper demo`: it needs no download and takes some seconds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (
    demo,
    run,
    inspect,
    show,
    trace,
    summary,
    compare,
    judge,
    verify,
    convert,
    download,
    push,
    describe,
    truncate,
    diff_config,
    bad_cases,
    text_metrics,
):
    app.command()(guarded(command))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hf_dumper {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
