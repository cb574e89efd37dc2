"""How far apart two texts are: exact match, edit distance, BLEU and ROUGE, each by its library."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from hf_dumper.errors import ConfigError

ROUGE: Final = ("rouge1", "rouge2", "rougeL")
TOKENIZERS: Final = ("13a", "intl", "zh", "char", "none")
"""Ways in which sacrebleu splits a text into words."""

PER_ROW: Final = ("exact", "edit_distance", "edit_similarity", "bleu", *ROUGE)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TextMetrics:
    """Metrics of pairs of texts.

    Attributes:
        rows: One mapping per pair, by the names of `PER_ROW`: whether both are equal, the
            Levenshtein distance in characters, 1 less that by the longer text's length, BLEU of
            the sentence (0 to 100, effective order) and the F measures of ROUGE (0 to 1). What
            cannot be computed is None.
        total: `rows`; `exact` the share of equal pairs; the means of the others over the rows that
            have them; `bleu` that of the corpus; `edit_rate` the sum of distances by that of
            golden characters; `not_computable` how many rows lack a metric, by its name.
    """

    rows: tuple[Row, ...]
    total: Row


def compare_texts(pairs: Sequence[tuple[str, str]], *, tokenize: str | None = None) -> TextMetrics:
    """Measure pairs of (golden, candidate) texts.

    Args:
        pairs: The texts; at least one pair.
        tokenize: How a text becomes words, one of `TOKENIZERS`, for BLEU and ROUGE alike. None
            takes what each defines: 13a for BLEU; letters a to z and digits for ROUGE, which is
            then None for texts with others.

    Raises:
        ConfigError: there is no pair, no such tokenizer, or a library is missing; the message says
            what to install.
    """
    if not pairs:
        msg = "There are no texts to compare."
        raise ConfigError(msg)
    if tokenize not in (None, *TOKENIZERS):
        msg = f"There is no tokenizer {tokenize!r}. Known: {', '.join(TOKENIZERS)}."
        raise ConfigError(msg)
    measures = _Measures(tokenize)
    rows = tuple(measures.row(golden, candidate) for golden, candidate in pairs)
    return TextMetrics(rows, _total(pairs, rows, measures))


class _Measures:
    """The metrics of three libraries, set up once."""

    def __init__(self, tokenize: str | None) -> None:
        try:
            from rapidfuzz.distance import Levenshtein
            from rouge_score.rouge_scorer import RougeScorer
            from sacrebleu.metrics.bleu import BLEU
        except ImportError as error:
            msg = f'Text metrics need {error.name}: pip install "hf_dumper[text]"'
            raise ConfigError(msg) from error
        self._edit: Any = Levenshtein
        self._sentence = BLEU(tokenize=tokenize, effective_order=True)
        self._corpus = BLEU(tokenize=tokenize)
        self._latin_only = tokenize is None
        words = None if tokenize is None else _Words(self._sentence.tokenizer)
        self._rouge = RougeScorer(ROUGE, tokenizer=words)

    def row(self, golden: str, candidate: str) -> Row:
        """Return the metrics of one pair."""
        has_words = bool(golden.strip())
        bleu = self._sentence.sentence_score(candidate, [golden]).score if has_words else None
        return {
            "exact": golden == candidate,
            "edit_distance": self._edit.distance(golden, candidate),
            "edit_similarity": self._edit.normalized_similarity(golden, candidate),
            "bleu": bleu,
            **self._rouges(golden, candidate),
        }

    def corpus_bleu(self, pairs: Sequence[tuple[str, str]]) -> float:
        """Return BLEU of all candidates together."""
        golden, candidates = zip(*pairs, strict=True)
        return float(self._corpus.corpus_score(list(candidates), [list(golden)]).score)

    def _rouges(self, golden: str, candidate: str) -> Mapping[str, float | None]:
        if not golden.strip() or (self._latin_only and _has_other_letters(golden + candidate)):
            return dict.fromkeys(ROUGE)
        scores = self._rouge.score(golden, candidate)
        return {name: float(scores[name].fmeasure) for name in ROUGE}


class _Words:
    """A tokenizer of sacrebleu as rouge_score takes one."""

    def __init__(self, split: Any) -> None:
        self._split = split

    def tokenize(self, text: str) -> list[str]:
        return str(self._split(text)).split()


def _has_other_letters(text: str) -> bool:
    """Tell whether a text has letters that ROUGE's own tokenizer drops."""
    return any(c.isalnum() and not c.isascii() for c in text)


def _total(pairs: Sequence[tuple[str, str]], rows: Sequence[Row], measures: _Measures) -> Row:
    golden = sum(len(text) for text, _ in pairs)
    means = {name: _mean([row[name] for row in rows]) for name in PER_ROW}
    missing = {name: sum(row[name] is None for row in rows) for name in ("bleu", *ROUGE)}
    edits = sum(row["edit_distance"] for row in rows)
    return {
        "rows": len(rows),
        **means,
        "bleu": measures.corpus_bleu(pairs) if golden else None,
        "edit_rate": edits / golden if golden else None,
        "not_computable": {name: count for name, count in missing.items() if count},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
