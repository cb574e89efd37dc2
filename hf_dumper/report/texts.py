"""The text of token ids, by the tokenizer that a dump keeps."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_dumper.core.verdicts import Comparison

logger = logging.getLogger(__name__)

_FOLDER = "tokenizer"


def with_texts(comparison: Comparison) -> Comparison:
    """Return the comparison with the text of every token of which only the id is known.

    Without a tokenizer beside one of the dumps, the golden's first, nothing is changed.
    """
    tokens = comparison.tokens
    folders = (Path(path) / _FOLDER for path in (comparison.golden, comparison.candidate) if path)
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None or not tokens.num_rows:
        return comparison
    ids = {n for side in ("golden_id", "candidate_id") for n in tokens.column(side).to_pylist()} - {
        None
    }
    texts = _decode(folder, sorted(ids))
    for side in ("golden", "candidate"):
        name = f"{side}_text"
        known = tokens.column(name).to_pylist()
        ids_of_side = tokens.column(f"{side}_id").to_pylist()
        filled = [
            texts.get(n) if text is None else text
            for n, text in zip(ids_of_side, known, strict=True)
        ]
        place = tokens.column_names.index(name)
        tokens = tokens.set_column(place, name, pa.array(filled, pa.utf8()))
    return replace(comparison, tokens=tokens)


def _decode(folder: Path, ids: list[int]) -> dict[int, str]:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        return {n: tokenizer.decode([n]) for n in ids}
    except Exception:
        logger.exception("The tokenizer in %s cannot be used; tokens have no text", folder)
        return {}
