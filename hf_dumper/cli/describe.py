"""`hf-dumper describe`: what a model is, from its files alone."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_dumper.cli.failures import DONE, FAILED
from hf_dumper.cli.model_files import opened
from hf_dumper.cli.models import load_empty
from hf_dumper.cli.options import Json
from hf_dumper.cli.run import Model
from hf_dumper.cli.terminal import Work, calm, print_json, stdout
from hf_dumper.errors import ModelError

if TYPE_CHECKING:
    from hf_dumper.models.describe import Description
    from hf_dumper.models.estimate import Estimate

_KINDS = {
    "tensors": "tensors",
    "statistics": "statistics",
    "both": "both",
    "last_logits": "last logits",
}


def describe(
    model: Model,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Rows of the batch.")] = 1,
    index: Annotated[bool, typer.Option("--tensors", help="Show every tensor, too.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model's own code.")
    ] = False,
    json: Json = False,
) -> int:
    """Show files, sizes and what a dump would weigh; no weights are read or downloaded."""
    from hf_dumper.models.describe import describe as describe_files

    with Work(f"Reading {model}"), opened(model, revision) as files, calm():
        found = describe_files(files)
    guess = _estimate(model, found, revision, tokens, batch, trust=trust_remote_code)
    if json:
        print_json(_as_dict(found, guess))
    else:
        for line in _lines(found, guess):
            stdout().print(line, soft_wrap=True)
        if index:
            for t in found.tensors:
                stdout().print(f"{t.file}  {t.name}  {t.dtype}  {list(t.shape)}", soft_wrap=True)
    return FAILED if _is_short_of(found) else DONE


def _is_short_of(found: "Description") -> bool:
    """Tell whether something is missing without which the model does not load."""
    return any(not line.startswith(_OPTIONAL) for line in found.missing)


_OPTIONAL = ("generation_config.json", "tokenizer", "merges.txt", "preprocessor_config.json")
"""How lines begin about what a model loads without."""


def _estimate(
    model: str, found: "Description", revision: str | None, tokens: int, rows: int, *, trust: bool
) -> "Estimate":
    from hf_dumper.config import DumpConfig
    from hf_dumper.models.estimate import Estimate, estimate

    if found.needs_remote_code and not trust:
        why = "the model's own code would have to run: --trust-remote-code"
        return Estimate(tokens, rows, None, None, why)
    try:
        empty = load_empty(model, revision=revision, trust_remote_code=trust)
    except ModelError as error:
        return Estimate(tokens, rows, None, None, str(error))
    with Work(f"Estimating {model}"), calm():
        dtype = found.architecture.get("dtype")
        if dtype is not None:
            import torch

            empty.to(getattr(torch, str(dtype).removeprefix("torch.")))
        return estimate(empty, DumpConfig().to_dict(), tokens=tokens, rows=rows)


def _as_dict(found: "Description", guess: "Estimate") -> dict[str, Any]:
    return {
        "name": found.name,
        "architecture": dict(found.architecture),
        "needs_remote_code": found.needs_remote_code,
        "auto_map": dict(found.auto_map),
        "quantisation": found.quantisation,
        "parameters": sum(d.parameters for d in found.dtypes.values()),
        "bytes": sum(d.bytes for d in found.dtypes.values()),
        "dtypes": {name: asdict(total) for name, total in found.dtypes.items()},
        "files": [f._asdict() for f in found.files],
        "weights": {
            "format": found.weights.format,
            "index": found.weights.index,
            "shards": list(found.weights.shards),
        },
        "tensors": {
            t.name: {"file": t.file, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.nbytes}
            for t in found.tensors
        },
        "index": dict(found.weights.places),
        "missing": list(found.missing),
        "unread": dict(found.unread),
        "dump": guess.to_dict(),
    }


def _lines(found: "Description", guess: "Estimate") -> Iterator[str]:
    from hf_dumper.report.numbers import plural, size

    yield found.name
    sizes = dict(found.architecture)
    yield f"class       {sizes.pop('class', '-')} ({sizes.pop('model_type', '-')})"
    yield f"sizes       {', '.join(f'{k} {v}' for k, v in sizes.items())}"
    for name, total in found.dtypes.items():
        held = plural(total.tensors, "tensor")
        yield f"weights     {name}: {total.parameters:,} parameters, {size(total.bytes)}, {held}"
    code = ", ".join(f"{k} = {v}" for k, v in found.auto_map.items())
    needed = "needed (--trust-remote-code)" if found.needs_remote_code else "not needed"
    yield f"own code    {needed}" + (f": {code}" if code else "")
    if found.quantisation:
        yield f"quantised   {found.quantisation.get('quant_method', 'by an unnamed method')}"
    for file in found.files:
        more = f"  {file.detail}" if file.detail else ""
        yield f"file        {file.name}  {size(file.bytes)}  {file.role}{more}"
    yield from (f"missing     {line}" for line in found.missing)
    yield from (f"not read    {name}: {why}" for name, why in found.unread.items())
    yield from _guessed(guess)


def _guessed(guess: "Estimate") -> Iterator[str]:
    from hf_dumper.report.numbers import size

    if guess.sizes is None:
        yield f"dump        not known: {guess.why}"
        return
    yield f"a dump of a prompt of {guess.tokens} tokens in {guess.rows} rows would take about"
    yield f"  {'':<12}{'always':>10}{'prefill':>12}{'each token':>12}"
    for kind, s in guess.sizes.items():
        token = "-" if s.token is None else size(s.token)
        yield f"  {_KINDS[kind]:<12}{size(s.once):>10}{size(s.prefill):>12}{token:>12}"
    if guess.why:
        yield guess.why
