"""`hf-dumper bad-cases` and `text-metrics`: two files of an evaluation in, what parts them out."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from hf_dumper.cli.failures import DONE, FAILED
from hf_dumper.cli.flat import flat
from hf_dumper.cli.options import Json, ModelOptions
from hf_dumper.cli.terminal import Work, calm, print_json, stdout
from hf_dumper.errors import ConfigError

if TYPE_CHECKING:
    from hf_dumper.badcases import BadCase, BadCases, Columns, Explained
    from hf_dumper.core.verdicts import Comparison

_FILES, _GOLDEN, _CANDIDATE = "The two files", "The golden side", "The candidate's side"

Golden = Annotated[
    Path, Argument(metavar="GOLDEN_RESULTS", help=".csv or .jsonl: id, prompt, answer, passed.")
]
Candidate = Annotated[
    Path, Argument(metavar="CANDIDATE_RESULTS", help="The same of the other model.")
]


@dataclass(frozen=True)
class ColumnOptions:
    """Names of the columns in both files."""

    id_column: Annotated[str, Option(rich_help_panel=_FILES)] = "id"
    prompt_column: Annotated[str, Option(rich_help_panel=_FILES)] = "prompt"
    answer_column: Annotated[str, Option(rich_help_panel=_FILES)] = "answer"
    passed_column: Annotated[str, Option(rich_help_panel=_FILES)] = "passed"

    def to_columns(self) -> "Columns":
        """Return them as the library takes them."""
        from hf_dumper.badcases import Columns

        names = self.id_column, self.prompt_column, self.answer_column, self.passed_column
        return Columns(*names)


@dataclass(frozen=True)
class SideOptions:
    """Where the logits of each side come from: a model that is run, or a dump that exists."""

    golden_model: Annotated[
        str | None, Option(metavar="MODEL", help="Run this model.", rich_help_panel=_GOLDEN)
    ] = None
    golden_dtype: Annotated[
        str | None, Option(help="float32, bfloat16, ...", rich_help_panel=_GOLDEN)
    ] = None
    golden_device_map: Annotated[
        str | None, Option(help="cpu, cuda, npu, auto...", rich_help_panel=_GOLDEN)
    ] = None
    golden_dump: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="Take this dump instead.", rich_help_panel=_GOLDEN),
    ] = None
    candidate_model: Annotated[
        str | None,
        Option(
            metavar="MODEL",
            help="Run this model, with the options under The model.",
            rich_help_panel=_CANDIDATE,
        ),
    ] = None
    candidate_dump: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="Take this dump instead.", rich_help_panel=_CANDIDATE),
    ] = None

    def to_sources(self, out: Path | None, loading: ModelOptions) -> "list[Source]":
        """Return the golden's source and the candidate's.

        Raises:
            ConfigError: a side has neither model nor dump, or both, or no place for its dump.
        """
        golden = ModelOptions(dtype=self.golden_dtype, device_map=self.golden_device_map)
        return [
            _source("golden", self.golden_model, self.golden_dump, golden, out),
            _source("candidate", self.candidate_model, self.candidate_dump, loading, out),
        ]


@dataclass(frozen=True)
class Source:
    """One side: `model` is None where the dump at `path` exists already."""

    path: Path
    model: str | None
    loading: ModelOptions


@flat
def bad_cases(
    golden_results: Golden,
    candidate_results: Candidate,
    sides: SideOptions,
    loading: ModelOptions,
    columns: ColumnOptions,
    dump: Annotated[
        Path | None,
        Option("--dump", "--dump-path", metavar="FOLDER", help="Where dumps and comparison go."),
    ] = None,
    max_new_tokens: Annotated[int, Option(min=1, help="Tokens to generate at most.")] = 128,
    chat: Annotated[bool, Option("--chat", help="Use the tokenizer's chat template.")] = False,
    limits: Annotated[Path | None, Option(metavar="FILE", help="Judge by these limits.")] = None,
    json: Json = False,
) -> int:
    """Find the answers that two evaluations judge unlike, and the token where each pair parts."""
    sources = sides.to_sources(dump, loading)
    found = _find(golden_results, candidate_results, columns.to_columns())
    explained: Sequence[Explained] = ()
    if found.cases:
        for source in sources:
            _make(source, found.cases, max_new_tokens, chat=chat)
        explained, comparison = _explain(sources, found.cases, limits, chat=chat)
        _keep(dump, explained, comparison)
    _tell(found, explained, as_json=json)
    return FAILED if found.cases or not found.is_whole else DONE


@flat
def text_metrics(
    golden_results: Golden,
    candidate_results: Candidate,
    columns: ColumnOptions,
    tokenize: Annotated[
        str | None,
        Option(
            help="How texts become words: 13a, intl, zh, char or none.",
            show_default="as BLEU and ROUGE define it",
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Measure how far the answers of two evaluations are apart: exact, edits, BLEU, ROUGE."""
    from hf_dumper.badcases import compare_texts, find_cases, read_results
    from hf_dumper.report.bad_cases import matching, metric_table

    with Work("Reading"), calm():
        names = columns.to_columns()
        paths = golden_results.expanduser(), candidate_results.expanduser()
        golden, candidate = (read_results(path, names, needed=("answer",)) for path in paths)
    match = find_cases(golden, candidate)
    ids = [name for name in golden.rows if name in candidate.rows]
    texts = [(golden.rows[i].answer or "", candidate.rows[i].answer or "") for i in ids]
    measured = compare_texts(texts, tokenize=tokenize)
    rows = [{"id": name, **row} for name, row in zip(ids, measured.rows, strict=True)]
    facts = _match_facts(match)
    if json:
        print_json({"rows": rows, "total": measured.total, **facts})
    else:
        console = stdout()
        console.print(metric_table(rows, measured.total))
        for line in matching(facts)[1:]:
            console.print(line)
        if measured.total["not_computable"]:
            console.print(f"Not computable in some rows: {measured.total['not_computable']}")
    return DONE if match.is_whole else FAILED


def _source(
    side: str, model: str | None, dump: Path | None, loading: ModelOptions, out: Path | None
) -> Source:
    if (model is None) == (dump is None):
        msg = f"Give either --{side}-model MODEL or --{side}-dump FOLDER."
        raise ConfigError(msg)
    if dump is not None:
        if loading != ModelOptions():
            msg = f"Options of a model are given, but --{side}-dump runs none."
            raise ConfigError(msg)
        return Source(dump.expanduser(), None, loading)
    if out is None:
        msg = f"--dump FOLDER is missing: the dump of --{side}-model goes there."
        raise ConfigError(msg)
    path = out.expanduser() / side
    if path.exists():
        msg = f"{str(path)!r} exists. Choose another --dump, or take it with --{side}-dump."
        raise ConfigError(msg)
    return Source(path, model, loading)


def _find(golden: Path, candidate: Path, columns: "Columns") -> "BadCases":
    from hf_dumper.badcases import find_cases, read_results

    with Work("Reading"), calm():
        sides = (read_results(path.expanduser(), columns) for path in (golden, candidate))
        return find_cases(*sides)


def _make(source: Source, cases: "Sequence[BadCase]", tokens: int, *, chat: bool) -> None:
    """Dump the cases with the source's model, if it has one."""
    if source.model is None:
        return
    from hf_dumper.badcases import dump_cases
    from hf_dumper.cli.models import load_model

    model, tokenizer = load_model(source.model, source.loading)
    with Work(f"Dumping to {source.path}") as work, calm():
        dump_cases(
            model,
            tokenizer,
            cases,
            source.path,
            max_new_tokens=tokens,
            chat=chat,
            on_progress=lambda index, done: work.update(index * tokens + done, len(cases) * tokens),
        )


def _explain(
    sources: Sequence[Source], cases: "Sequence[BadCase]", limits: Path | None, *, chat: bool
) -> "tuple[list[Explained], Comparison | None]":
    from hf_dumper.badcases import explain
    from hf_dumper.store import open_dump

    with Work("Comparing"), calm(), ExitStack() as stack:
        readers = [stack.enter_context(open_dump(source.path)) for source in sources]
        return explain(cases, readers[0], readers[1], chat=chat, limits=limits)


def _keep(
    out: Path | None, explained: "Sequence[Explained]", comparison: "Comparison | None"
) -> None:
    """Write the comparison, for `hf-dumper judge`, and the table into the folder of the dumps."""
    if out is None:
        return
    import pyarrow as pa
    import pyarrow.csv as pacsv

    from hf_dumper.compare.saved import save

    folder = out.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    pacsv.write_csv(
        pa.Table.from_pylist([e.to_dict() for e in explained]), folder / "bad_cases.csv"
    )
    if comparison is not None:
        save(comparison, folder / "comparison")


def _tell(found: "BadCases", explained: "Sequence[Explained]", *, as_json: bool) -> None:
    from hf_dumper.report.bad_cases import case_table, matching, not_reproduced

    rows = [one.to_dict() for one in explained]
    if as_json:
        print_json({"cases": rows, **_match_facts(found)})
        return
    console = stdout()
    for line in matching(_match_facts(found)):
        console.print(line)
    if rows:
        console.print()
        console.print(case_table(rows))
        for line in not_reproduced(rows):
            console.print(line)


def _match_facts(found: "BadCases") -> dict[str, Any]:
    return {
        "differing": len(found.cases),
        "agreeing": found.agreeing,
        "whole": found.is_whole,
        "only_golden": list(found.only_golden),
        "only_candidate": list(found.only_candidate),
        "doubled": list(found.doubled),
        "other_prompts": list(found.other_prompts),
    }
