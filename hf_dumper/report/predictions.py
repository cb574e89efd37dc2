"""What a model predicts after each token of a prompt, with texts and as lines."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from hf_dumper.report.texts import candidate, quoted, texts_of
from hf_dumper.store.kept import read_predictions, tokenizer_folder


def predictions(dump: Path, run: int) -> list[dict[str, Any]] | None:
    """Return the kept predictions inside the prompt of a run, None where nobody asked for them.

    Each has `text`, `next_text` and `top_texts`, None without a tokenizer in the dump.
    """
    table = read_predictions(dump, run)
    if table is None:
        return None
    rows: list[dict[str, Any]] = table.to_pylist()
    ids = {i for row in rows for i in (row["id"], *row["top_ids"])}
    folder = tokenizer_folder(dump)
    texts = texts_of(folder, ids) if folder else {}
    for row in rows:
        row["text"], row["next_text"] = texts.get(row["id"]), texts.get(row["next_id"])
        row["top_texts"] = [texts.get(i) for i in row["top_ids"]]
    return rows


def prediction_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    """Yield a line for each token: what the model expects after it, and what follows really."""
    several = any(row["row"] for row in rows)
    for row in rows:
        where = f"row {row['row']} " if several else ""
        own = str(row["id"]) if row["text"] is None else quoted(row["text"])
        line = Text.assemble((f"    {where}{row['position']:>4}  ", "dim"), (own, "green"), " → ")
        found = zip(row["top_ids"], row["top_texts"], row["top_probabilities"], strict=True)
        line.append("  ".join(candidate(*choice) for choice in found))
        if row["next_rank"] is not None:
            told = candidate(row["next_id"], row["next_text"], row["next_probability"])
            line.append(f"  (follows: {told}, rank {row['next_rank']})", "dim")
        yield line
