"""The text of token ids, by the tokenizer that a dump keeps."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from hf_dumper.core.verdicts import Comparison
from hf_dumper.errors import HFDumperError
from hf_dumper.report.numbers import number
from hf_dumper.store import open_dump
from hf_dumper.store.kept import tokenizer_folder

logger = logging.getLogger(__name__)

_SIDES = ("golden", "candidate")


def with_texts(comparison: Comparison) -> Comparison:
    """Return the comparison with the text of every token of which only the id is known.

    Without a tokenizer beside one of the dumps, the golden's first, nothing is changed.
    """
    tokens = comparison.tokens
    folders = map(_tokenizer, (comparison.golden, comparison.candidate))
    folder = next(filter(None, folders), None)
    if folder is None or not tokens.num_rows:
        return comparison
    ids = {side: tokens.column(f"{side}_id").to_pylist() for side in _SIDES}
    texts = texts_of(folder, {n for side in _SIDES for n in ids[side] if n is not None})
    for side in _SIDES:
        known = tokens.column(f"{side}_text").to_pylist()
        pairs = zip(known, ids[side], strict=True)
        filled = [texts.get(n) if text is None else text for text, n in pairs]
        place = tokens.column_names.index(f"{side}_text")
        tokens = tokens.set_column(place, f"{side}_text", pa.array(filled, pa.utf8()))
    return replace(comparison, tokens=tokens)


def _tokenizer(dump: str) -> Path | None:
    """Return the folder of the tokenizer that a dump keeps, here or on a hub, None without one."""
    if not dump.startswith("hf:/"):
        return tokenizer_folder(Path(dump))
    try:
        with open_dump(dump) as reader:
            return tokenizer_folder(reader.path)
    except HFDumperError as error:
        logger.warning("%s cannot be asked for its tokenizer; tokens have no text: %s", dump, error)
        return None


def texts_of(folder: Path, ids: Iterable[int]) -> dict[int, str]:
    """Return the text of each id by the tokenizer in a folder; none where it cannot be used."""
    try:
        decode = _decoder(folder)
        return {n: decode([n]) for n in ids}
    except Exception:
        logger.exception("The tokenizer in %s cannot be used; tokens have no text", folder)
        return {}


def _decoder(folder: Path) -> Callable[[list[int]], str]:
    """Return what makes text of ids; the file of a fast tokenizer needs no transformers."""
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return lambda ids: str(fast.decode(ids, skip_special_tokens=False))
    from transformers import AutoTokenizer

    slow = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return lambda ids: str(slow.decode(ids))


def quoted(text: str) -> str:
    """Return a text between quotes, spaces kept, without what would steer the terminal."""
    shown = text.replace("\n", "\\n").replace("\t", "\\t")
    return '"' + "".join(c if c.isprintable() else "\ufffd" for c in shown) + '"'


def candidate(token: int, text: str | None, probability: float) -> str:
    """Return a candidate for a token and its probability."""
    name = str(token) if text is None else quoted(text)
    return f"{name} {number(probability)}"
