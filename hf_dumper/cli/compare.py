"""`hf-dumper compare` and `judge`: two dumps in, the first divergent module out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_dumper.cli.failures import DONE, FAILED, IMPOSSIBLE
from hf_dumper.cli.options import Json, Names
from hf_dumper.cli.terminal import Work, calm, print_json, stdout

if TYPE_CHECKING:
    from hf_dumper.core.verdicts import Comparison

Limits = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Judge by these limits, laid over those of the package."),
]
Reports = Annotated[
    list[Path] | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Write .json, .csv, .parquet, .xml (JUnit) or .msit.csv; may be repeated.",
    ),
]
Top = Annotated[int, typer.Option(min=0, help="How many of the farthest pairs to show.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Keep the comparison, for hf-dumper judge."),
]


def compare(
    golden: Annotated[
        Path, typer.Argument(metavar="GOLDEN", help="The dump to trust.", show_default=False)
    ],
    candidate: Annotated[
        Path, typer.Argument(metavar="CANDIDATE", help="The dump to test.", show_default=False)
    ],
    limits: Limits = None,
    metric: Annotated[
        Names,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="A metric of your own: two float64 vectors to a number; may be repeated.",
        ),
    ] = None,
    out: Out = None,
    report: Reports = None,
    json: Json = False,
    top: Top = 3,
) -> int:
    """Say whether two dumps agree, and if not, where first, how sure, and why."""
    from hf_dumper.comparison import compare as compare_dumps

    _check(report or ())
    with Work(f"Comparing {golden} and {candidate}"), calm():
        found = compare_dumps(
            golden.expanduser(), candidate.expanduser(), limits=limits, metrics=metric
        )
    return _tell(found, out, report or (), top, as_json=json)


def judge(
    saved: Annotated[
        Path, typer.Argument(metavar="SAVED", help="Folder of compare --out.", show_default=False)
    ],
    limits: Limits = None,
    out: Out = None,
    report: Reports = None,
    json: Json = False,
    top: Top = 3,
) -> int:
    """Judge a kept comparison again, under other limits and without the tensors."""
    from hf_dumper.comparison import judge as judge_again

    _check(report or ())
    found = judge_again(saved.expanduser(), limits=limits)
    return _tell(found, out, report or (), top, as_json=json)


def show_comparison(found: "Comparison", top: int = 3) -> None:
    """Print a comparison for a person."""
    from hf_dumper.report.comparison import comparison, snippet

    console = stdout()
    console.print(comparison(found, top=top))
    code = snippet(found)
    if code is not None:
        console.print(code, soft_wrap=True)


def _check(reports: Sequence[Path]) -> None:
    """Look at the endings before the work begins.

    Raises:
        ConfigError: one of them names no format.
    """
    from hf_dumper.report.reporters import reporter_for

    for path in reports:
        reporter_for(path)


def _tell(
    found: "Comparison", out: Path | None, reports: Sequence[Path], top: int, *, as_json: bool
) -> int:
    """Keep, print and write a comparison; return the exit status."""
    from hf_dumper.compare.saved import save
    from hf_dumper.core.verdicts import Verdict
    from hf_dumper.report.reporters import write_report
    from hf_dumper.report.tables import as_dict

    if out is not None:
        save(found, out.expanduser())
    if as_json:
        print_json(as_dict(found))
    else:
        show_comparison(found, top)
    for path in reports:
        write_report(found, path.expanduser())
    if found.verdict is Verdict.NOTHING:
        return IMPOSSIBLE
    return DONE if found.passed else FAILED
