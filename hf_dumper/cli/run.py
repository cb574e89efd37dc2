"""`hf-dumper run`: prompts through a model, dumped."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from hf_dumper.cli.asked import source_of
from hf_dumper.cli.failures import DONE, FAILED
from hf_dumper.cli.flat import flat
from hf_dumper.cli.launched import Part, RowFacts, Share, on_device
from hf_dumper.cli.options import (
    DumpOptions,
    GenerationOptions,
    Json,
    ModelOptions,
    PromptOptions,
)
from hf_dumper.cli.sources import Source
from hf_dumper.cli.terminal import Work, calm, print_json, stdout
from hf_dumper.errors import DumpWriteError, EmptyDumpError, PromptError
from hf_dumper.launch import Launch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_dumper.config import DumpConfig
    from hf_dumper.diagnose import SelfCheck
    from hf_dumper.report.terminal import IndexedReader
    from hf_dumper.runner import PromptResult
    from hf_dumper.session import DumpSession

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder, repository on the hub, or the word demo for the embedded model.",
        show_default=False,
    ),
]
Predicted = Annotated[
    bool,
    typer.Option(
        "--prompt-predictions",
        help="Add what the model predicts after each token of a prompt, by one more forward.",
    ),
]
SelfChecked = Annotated[
    bool,
    typer.Option(
        "--self-check",
        help="First prove, on the first prompt, that dumping changes no bit of tokens and logits.",
    ),
]

_TOLD = 20
"""Failures that are told one by one."""


@flat
def run(
    model: Model,
    prompts: PromptOptions,
    generation: GenerationOptions,
    dump: DumpOptions,
    loading: ModelOptions,
    self_check: SelfChecked = False,
    prompt_predictions: Predicted = False,
    json: Json = False,
) -> int:
    """Generate from prompts and dump what happens inside the model."""
    launch = Launch.of_environment()
    share = Share(launch)
    console = Console(quiet=True) if json else stdout()
    with calm(kept=share.warnings):
        with launch.together():
            source = source_of(prompts, generation, dump.to_config())
            source.launch = launch
            launch.agree("the prompts", source.facts)
            config = place(dump.to_config(source.selection()))
            config = replace(config, dump_path=Path(launch.of_main(lambda: str(config.dump_path))))
            from hf_dumper.cli.models import load_model

            loaded, tokenizer = load_model(model, on_device(loading, launch))
            if prompt_predictions:
                _check_predictable(loaded)
            check = _check(loaded, tokenizer, source, config) if self_check else None
        if check is not None:
            _tell_check(console, check)
        terms: dict[str, Any] = {"check": check, "predict": prompt_predictions, "share": share}
        results = dump_all(loaded, tokenizer, source, config, console, **terms)
    return finish(config, results, check, console, as_json=json, source=source, share=share)


def place(config: "DumpConfig") -> "DumpConfig":
    """Return the configuration with a path, after a first look at whether it can be written.

    The look comes before the model is loaded, which may take minutes.

    Raises:
        DumpWriteError: the folder surely cannot be made or written.
    """
    path = Path(config.dump_path or f"hf_dump_{datetime.now():%Y%m%d_%H%M%S}").expanduser()
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir():
        msg = f"Cannot write {str(path)!r}: {str(there)!r} is a file. Choose another --dump."
        raise DumpWriteError(msg)
    if not os.access(there, os.W_OK | os.X_OK):
        msg = f"Cannot write {str(path)!r}: no permission in {str(there)!r}. Choose another --dump."
        raise DumpWriteError(msg)
    return replace(config, dump_path=path)


def dump_all(
    model: "PreTrainedModel",
    tokenizer: Any,
    source: Source,
    config: "DumpConfig",
    console: Console,
    *,
    check: "SelfCheck | None" = None,
    predict: bool = False,
    share: Share | None = None,
) -> "list[PromptResult]":
    """Dump every prompt and print each answer as it comes.

    An error gets a note that says what is on disk already.
    """
    from hf_dumper.session import DumpSession

    share = share or Share(Launch())
    results: list[PromptResult] = []
    predicted = None
    session = DumpSession(model, config, tokenizer=tokenizer, launch=share.launch)
    work = Work(f"Dumping to {config.dump_path}", source.unit)
    with share.kept(results), _told(config, results), _nothing_left(source), session, work:
        show = share.shown(work)

        def on_token(index: int, done: int) -> None:
            show(*source.progress(index, done))

        with share.launch.together():
            if check is not None:
                session.note("self_check", check.to_dict())
            source.prepare(model, tokenizer, on_token)
        on_token(0, 0)
        for result in source.each(model, tokenizer, on_token):
            results.append(result)
            fresh = predict and result.run not in (None, predicted)
            if fresh and result.run is not None:
                predicted = result.run
                _predict(session, model, result.run)
            with work.aside():
                console.print(_answer(result))
                if fresh and result.run is not None:
                    _tell_predictions(console, session, result.run)
    return results


def finish(
    config: "DumpConfig",
    results: "list[PromptResult]",
    check: "SelfCheck | None",
    console: Console,
    *,
    as_json: bool,
    source: Source | None = None,
    share: Share | None = None,
) -> int:
    """Print what is in the dump and how to open it; return the exit status."""
    from hf_dumper.cli.inspect import open_indexed
    from hf_dumper.report.predictions import predictions
    from hf_dumper.report.terminal import summary

    share = share or Share(Launch())
    path = Path(str(config.dump_path))
    with share.launch.together(), open_indexed(path) as reader:
        made = dict.fromkeys(r.run for r in results if r.run is not None)
        runs = [summary(reader, run) for run in made]
        for run in runs:
            run["prompt_predictions"] = predictions(path, run["run"])
        whole = all(r.run is not None for r in results) and all(run["complete"] for run in runs)
        whole = whole and (check is None or check.identical)
        whole = whole and (source is None or len(results) == source.asked)
        rows = None if source is None else source.rows
        part = Part(results, runs, whole, None if rows is None else RowFacts.of(rows))
        part = share.meet(part, "" if source is None else source.unit)
        if as_json:
            print_json(_as_dict(path, part, check) | _row_facts(part.rows))
        else:
            for result in part.results[len(results) :]:
                console.print(_answer(result))
            console.print()
            if part.rows is not None:
                _tell_rows(console, part.rows, path)
            _tell_dump(console, reader, part.runs)
    return DONE if part.whole else FAILED


@contextmanager
def _nothing_left(source: Source) -> Iterator[None]:
    """Let a dump be in which every row is there already; tell why no row is."""
    try:
        yield
    except EmptyDumpError as error:
        rows = source.rows
        if rows is None or not (rows.skipped or rows.failures):
            raise
        if not rows.skipped:
            raise PromptError(rows.failures[0].error) from error


def _tell_rows(console: Console, rows: RowFacts, path: Path) -> None:
    from hf_dumper.report.terminal import plural

    if rows.skipped:
        console.print(f"Skipped {plural(rows.skipped, 'row')} that the dump holds already.")
    if rows.replaced:
        console.print(f"Made {plural(rows.replaced, 'run')} again that had not been complete.")
    for failure in rows.failures[:_TOLD]:
        console.print(Text(f"Row {failure.row} FAILED: {failure.error}", "red"), soft_wrap=True)
    if rows.failures:
        count = plural(len(rows.failures), "row")
        console.print(f"{count} failed: see {path / 'failures.jsonl'}.", soft_wrap=True)


def _row_facts(rows: RowFacts | None) -> dict[str, Any]:
    if rows is None:
        return {}
    failures = [{"row": failure.row, "error": failure.error} for failure in rows.failures]
    return {"skipped": rows.skipped, "replaced": rows.replaced, "failures": failures}


def _check_predictable(model: "PreTrainedModel") -> None:
    from hf_dumper.diagnose import check_predictable

    check_predictable(model)


def _predict(session: "DumpSession", model: "PreTrainedModel", run: int) -> None:
    from hf_dumper.diagnose import predict_run

    predict_run(session, model, run)


def _tell_predictions(console: Console, session: "DumpSession", run: int) -> None:
    from hf_dumper.report.predictions import prediction_lines, predictions

    for line in prediction_lines(predictions(session.path, run) or ()):
        console.print(line, soft_wrap=True)


def _check(
    model: "PreTrainedModel",
    tokenizer: Any,
    source: Source,
    config: "DumpConfig",
) -> "SelfCheck":
    from hf_dumper.diagnose import self_check

    with Work("Self-check"):
        inputs, options = source.first(tokenizer, model)
        moved = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        return self_check(model, moved, config, **options)


@contextmanager
def _told(config: "DumpConfig", results: "list[PromptResult]") -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if results and not isinstance(error, EmptyDumpError):
            count = f"{len(results)} prompt" + ("s" if len(results) > 1 else "")
            error.add_note(f"The {count} before that can be read: {_inspect(config.dump_path)}")
        raise


def _inspect(path: object) -> str:
    return f"hf-dumper inspect {quoted(path)}"


def quoted(path: object) -> str:
    """Return a path as a shell takes it."""
    from shlex import quote

    return quote(str(path))


def _answer(result: "PromptResult") -> Text:
    from hf_dumper.report.terminal import printable

    run = "not dumped" if result.run is None else f"run {result.run}"
    line = Text.assemble((f"{run}  ", "dim"), printable(result.prompt.shown))
    if result.text is not None:
        line.append(" → ", "dim").append(printable(result.text), "green")
    return line


def _tell_check(console: Console, check: "SelfCheck") -> None:
    from hf_dumper.report.terminal import self_check_line

    style = "green" if check.identical else "bold red"
    console.print(Text(f"Self-check {self_check_line(check.to_dict())}.", style))
    console.print()


def _tell_dump(console: Console, reader: "IndexedReader", runs: list[dict[str, Any]]) -> None:
    from hf_dumper.report.terminal import disk_usage, plural, ranges, size

    files, nbytes = disk_usage(reader.path)
    tokens = sorted({token for run in runs for token in run["tokens"]})
    made = max((run["generated"] or 0 for run in runs), default=0)
    records = sum(run["records"] for run in runs)
    what = f"{plural(records, 'tensor')} of {plural(len(runs), 'run')}"
    of = f" of {made}" if made > len(tokens) else ""
    if runs:
        console.print(f"Dumped {what}: {_tokens(tokens, ranges(tokens))}{of}.")
    if of and reader.manifest["identity"]["dump_config"]["token_range"] is None:
        console.print("--token-range all dumps the others, too.", style="dim")
    for run in runs:
        if not run["complete"]:
            console.print(f"Run {run['run']} is INCOMPLETE: {run['incomplete']}", style="red")
    console.print(f"{size(nbytes)} in {plural(files, 'file')} at {reader.path}", soft_wrap=True)
    console.print(f"Look into it: {_inspect(reader.path)}", soft_wrap=True)


def _tokens(tokens: list[int], shown: str) -> str:
    if tokens == [0]:
        return "token 0 (the prefill)"
    return f"token{'s' if len(tokens) != 1 else ''} {shown}"


def _as_dict(path: Path, part: Part, check: "SelfCheck | None") -> dict[str, Any]:
    return {
        "path": str(path),
        "complete": part.failure is None and all(run["complete"] for run in part.runs),
        "self_check": None if check is None else check.to_dict(),
        "runs": part.runs,
    }
