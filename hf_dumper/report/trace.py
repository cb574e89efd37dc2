"""A generation as one reads it: token by token, what went in and what there was to choose."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.text import Text

from hf_dumper.core.protocols import DumpReader
from hf_dumper.report.numbers import NOTHING, number, plural
from hf_dumper.report.predictions import prediction_lines, predictions
from hf_dumper.report.texts import candidate, quoted, texts_of
from hf_dumper.store.kept import tokenizer_folder

_INDENT = "    "
_MOST = 8
"""Numbers or texts that are shown side by side; of more, the last ones."""

_OPTIONS = ("do_sample", "repetition_penalty", "no_repeat_ngram_size", "use_cache", "eos_token_id")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
"""Options of a generation that are shown, the latter where it samples; --json has all."""


def trace_facts(reader: DumpReader, run: int) -> dict[str, Any]:
    """Return what is known of a generation, JSON-ready.

    `tokens` are the rows of the trace with `input_texts`, `chosen_text` and `top_texts`, None
    without a tokenizer in the dump.

    Raises:
        KeyNotFoundError: the run has no trace.
    """
    info = reader.run_info(run)
    rows = reader.trace(run).to_pylist()
    folder = tokenizer_folder(reader.path)
    lists = [row[name] or () for row in rows for name in ("input_ids", "top_ids")]
    chosen = {row["chosen_id"] for row in rows} - {None}
    ids = chosen.union(*lists)
    texts = texts_of(folder, ids) if folder else {}
    for row in rows:
        row["input_texts"] = row["input_ids"] and [texts.get(i) for i in row["input_ids"]]
        row["chosen_text"] = texts.get(row["chosen_id"])
        row["top_texts"] = row["top_ids"] and [texts.get(i) for i in row["top_ids"]]
    return {
        "path": str(reader.path),
        "run": run,
        "complete": info.get("complete") is True,
        "incomplete": info.get("incomplete"),
        "prompt": info.get("prompt"),
        "generated_text": info.get("generated_text"),
        "generation_config": info.get("generation_config"),
        "length": info.get("length"),
        "ended": info.get("ended"),
        "prompt_predictions": predictions(reader.path, run),
        "tokens": rows,
    }


def trace_lines(facts: Mapping[str, Any]) -> Iterator[Text]:
    """Yield the lines of a generation, its end last; `facts` are those of `trace_facts`."""
    rows = facts["tokens"]
    batch = 1 + max((row["row"] for row in rows), default=0)
    made = 1 + max((row["token"] for row in rows), default=-1)
    head = f"Run {facts['run']}: {plural(made, 'token')}"
    yield Text(f"{head} in {plural(batch, 'row')}" if batch > 1 else head, "bold")
    for row, prompt in enumerate((facts["prompt"] or {}).get("text") or ()):
        yield Text.assemble((f"prompt{_row(row, batch)}  ", "dim"), quoted(prompt))
    yield from _options(facts["generation_config"])
    yield from _limit(facts["length"])
    yield from _inside(facts["prompt_predictions"])
    for token, group in groupby(rows, key=lambda row: row["token"]):
        yield Text()
        for i, row in enumerate(group):
            if not i:
                yield Text.assemble((f"token {token}", "bold"), (f"  {_forward(row)}", "dim"))
            yield Text(f"{_INDENT}in{_row(row['row'], batch)}  {_input(row)}", "dim")
            yield _chosen(row, batch)
            yield _candidates(row)
    yield Text()
    yield from _end(facts, batch)


def _inside(rows: Sequence[Mapping[str, Any]] | None) -> Iterator[Text]:
    if rows:
        yield Text()
        yield Text("After each token of the prompt the model expects:", "bold")
        yield from prediction_lines(rows)


def _options(config: Mapping[str, Any] | None) -> Iterator[Text]:
    known = config or {}
    names = (*_OPTIONS, *_SAMPLING) if known.get("do_sample") else _OPTIONS
    told = ", ".join(f"{name}={known[name]}" for name in names if known.get(name) is not None)
    if told:
        yield Text.assemble(("config  ", "dim"), told)


def _limit(length: Mapping[str, Any] | None) -> Iterator[Text]:
    if length:
        comes_to = length["max_new_tokens"]
        more = "" if comes_to in (None, length["value"]) else f", so {plural(comes_to, 'token')}"
        told = f"{length['name']}={length['value']}, {length['set_by']}{more}"
        yield Text.assemble(("limit  ", "dim"), told)


def _forward(row: Mapping[str, Any]) -> str:
    columns = next((row[n] for n in ("input_ids", "positions", "mask") if row[n] is not None), None)
    parts = [NOTHING if columns is None else f"{plural(len(columns), 'column')} in"]
    if row["cache"] is not None:
        length = "" if row["cache_length"] is None else f" holding {row['cache_length']:,}"
        parts.append(f"{row['cache']}{length}")
    else:
        parts.append("no cache")
    if row["use_cache"] is not None:
        parts.append(f"use_cache={row['use_cache']}")
    if row["logits_shape"] is not None:
        parts.append(f"logits {tuple(row['logits_shape'])}")
    if row["drafted"]:
        parts.append(f"{row['accepted']} of {plural(row['drafted'], 'draft')} accepted")
    return ", ".join(parts)


def _input(row: Mapping[str, Any]) -> str:
    """Return what went in: ids with their texts, position ids, and the mask of these columns."""
    ids, texts = row["input_ids"], row["input_texts"] or ()
    known = [quoted(text) for text in texts if text is not None]
    parts = ["embeddings" if ids is None else f"ids {_last(ids)}"]
    if known and len(known) == len(texts):
        parts[0] += f" {_last(known)}"
    places, mask = row["position_ids"], row["mask"]
    parts.append("no position_ids" if places is None else f"position_ids {_last(places)}")
    parts.append("no mask" if mask is None else f"mask {_last(mask)}")
    return ", ".join(parts)


def _last(values: Sequence[Any]) -> str:
    return ("… " if len(values) > _MOST else "") + " ".join(map(str, values[-_MOST:]))


def _row(row: int, batch: int) -> str:
    return f" {row}" if batch > 1 else ""


def _chosen(row: Mapping[str, Any], batch: int) -> Text:
    name = quoted(row["chosen_text"]) if row["chosen_text"] is not None else ""
    line = Text(_INDENT)
    if batch > 1:
        line.append(f"row {row['row']}  ", "dim")
    if row["chosen_id"] is None:  # beams: what comes of the row is told by the next token's rows
        before = f"continues row {row['parent']} of the token before"
        return line.append(before if row["token"] else "begins", "dim")
    line.append(name or str(row["chosen_id"]), "green")
    told = [f"id {row['chosen_id']}"] if name else []
    position = row["positions"][-1] if row["positions"] else None
    if position is not None and position < 0:
        told.append("padding: the row had ended")
    elif position is not None:
        told.append(f"after position {position}")
    if row["chosen_probability"] is not None:
        told.append(f"probability {number(row['chosen_probability'])}")
        told.append(f"rank {row['chosen_rank'] or NOTHING}")
        told.append(f"margin {number(row['margin'])}")
    return line.append("  " + ", ".join(told), "dim")


def _candidates(row: Mapping[str, Any]) -> Text:
    if row["top_ids"] is None:
        return Text(f"{_INDENT}the logits cannot be read", "dim")
    found = zip(row["top_ids"], row["top_texts"], row["top_probabilities"], strict=True)
    return Text(f"{_INDENT}top {len(row['top_ids'])}: " + "  ".join(candidate(*c) for c in found))


def _end(facts: Mapping[str, Any], batch: int) -> Iterator[Text]:
    if not facts["complete"]:
        yield Text(f"INCOMPLETE: {facts['incomplete'] or 'still running, or cut off'}", "red")
    ends: Sequence[Mapping[str, Any]] = facts["ended"] or ()
    for row, end in enumerate(ends):
        reason = end["reason"]
        if "id" in end:
            reason += f", id {end['id']}"
        yield Text.assemble(
            (f"ended{_row(row, batch)}  ", "dim"), f"after token {end['token']}: {reason}"
        )
