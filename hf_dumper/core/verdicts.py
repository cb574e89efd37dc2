"""What a comparison says: verdicts, the first divergence, and the table of every pair."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import pyarrow as pa


class Verdict(StrEnum):
    """The judgement of one pair, of one token's logits, or of a whole comparison.

    Only IDENTICAL and PASS are good. What could not be judged is never among them: each reason why
    has a verdict of its own.
    """

    IDENTICAL = "identical"
    """The same bytes, or the same values in another dtype."""
    PASS = "pass"
    """Different, within the limits."""
    WARN = "warn"
    """Suspicious: beyond what is usual, within what is possible."""
    FAIL = "fail"
    """Beyond the limits."""
    NON_FINITE = "non-finite"
    """NaN or infinities at other places, or of other signs, than on the golden side."""
    SHAPE = "shape"
    """Shapes that differ after alignment."""
    NOT_COMPUTABLE = "not computable"
    """A pair, but no number: values or statistics are missing, or nothing says what to align by."""
    UNMATCHED = "unmatched"
    """On one side only."""
    TRUNCATED = "truncated"
    """After the first token in which the two sides differ: other inputs, so not comparable."""
    INPUTS = "inputs differ"
    """Whole comparisons only: model, prompts, weights or masks are not the same."""
    NOTHING = "nothing compared"
    """Whole comparisons only: not one pair was judged."""


GOOD: Final = frozenset({Verdict.IDENTICAL, Verdict.PASS})
BAD: Final = frozenset({Verdict.FAIL, Verdict.NON_FINITE, Verdict.SHAPE})
"""Verdicts of a pair that make it a fault."""

METRICS: Final = (
    "max_abs",
    "mean_abs",
    "rmse",
    "max_rel",
    "mean_rel",
    "rel_l2",
    "nmse",
    "cosine",
    "snr_db",
    "psnr_db",
    "rel_diff",
    "token_rel_l2",
    "token_rel_l2_p99",
    "channel_rel_l2",
    "ulp_max",
    "ulp_p99",
    "fraction_outside",
    "after_downcast",
    "scale_fit",
    "offset_fit",
    "sorted_equal",
)
"""Names of the metrics of one pair; METRICS of the documentation gives the formulas.

A metric that cannot be computed for a pair (a channel metric where the channels are unknown) is
null. `token_rel_l2` is the largest over the positions, `channel_rel_l2` is over the channels, each
divided by its golden root mean square first.
"""

RESULT_SCHEMA: Final = pa.schema(
    [
        ("run", pa.int32()),
        ("forward", pa.int32()),
        ("token", pa.int32()),
        ("phase", pa.utf8()),
        ("seq_in", pa.int64()),
        ("seq_out", pa.int64()),
        *((name, pa.utf8()) for name in ("module", "class", "slot", "param")),
        ("call", pa.int32()),
        *((name, pa.utf8()) for name in ("op", "axes", "dtype", "candidate_dtype")),
        ("shape", pa.list_(pa.int64())),
        ("candidate_shape", pa.list_(pa.int64())),
        ("elements", pa.int64()),  # compared: those of aligned rows and positions
        ("truncated", pa.int64()),  # rows x positions left out after a first differing token
        *((name, pa.float64()) for name in METRICS),
        *((name, pa.int64()) for name in ("golden_nonfinite", "candidate_nonfinite")),
        *((name, pa.int64()) for name in ("mask_mismatches", "row", "position")),
        ("channel", pa.int64()),  # with row and position: where the largest difference is
        ("golden_value", pa.float64()),
        ("candidate_value", pa.float64()),
        ("extra", pa.map_(pa.utf8(), pa.float64())),  # metrics of the user's own
        ("verdict", pa.utf8()),
        ("rule", pa.utf8()),  # the limit that decided, as "rel_l2 0.031 > 0.005 (fp16)"
        ("reason", pa.utf8()),
    ]
)
"""One row per golden record that has a partner, in order of completion.

`run`, `forward` and `seq_out` are the golden side's.
"""

UNMATCHED_SCHEMA: Final = pa.schema(
    [
        ("side", pa.utf8()),  # "golden" or "candidate"
        ("run", pa.int32()),
        ("forward", pa.int32()),
        ("token", pa.int32()),
        *((name, pa.utf8()) for name in ("module", "slot")),
        ("call", pa.int32()),
        ("op", pa.utf8()),
        ("verdict", pa.utf8()),  # unmatched, truncated or not computable
        ("reason", pa.utf8()),
    ]
)
"""One row per record that no pair covers, with the reason."""

TOKEN_SCHEMA: Final = pa.schema(
    [
        *((name, pa.int32()) for name in ("run", "row", "token", "position")),
        *((name, pa.int64()) for name in ("golden_id", "candidate_id")),
        *((name, pa.utf8()) for name in ("golden_text", "candidate_text")),
        *(
            (name, pa.float64())
            for name in (
                "margin",  # golden logit of the first choice less that of the second
                "margin_ulp",  # the same in units of last place of the narrower dtype
                "kl",  # KL(golden || candidate) in nats
                "js",
                "delta_logprob",  # of the golden token, in nats, candidate less golden
                "top5_jaccard",
                "top10_jaccard",
            )
        ),
        ("top1_equal", pa.bool_()),
        ("verdict", pa.utf8()),  # identical, tie, diverged; pass where only noise differs
        ("reason", pa.utf8()),
    ]
)
"""One row per generated token of each row: what was chosen, and how far the logits are apart."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference of inputs or of regime: what it is about, both values, and what it means."""

    subject: str
    golden: Any
    candidate: Any
    meaning: str


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first place where the candidate goes wrong.

    `kind` is "source" (all inputs of the module agree, its output does not), "functional" (so do
    its children: the fault is in the module's own forward), "inputs", "weights", "first failing"
    (its inputs were not captured, so nothing says that it is the source) or "below floor".
    `suspects` are modules with a WARN before it; `unchecked` counts records before it that were not
    judged. `evidence` are short sentences, `snippet` is Python that shows the two tensors.
    """

    module: str
    slot: str
    token: int
    position: int | None
    row: int | None
    kind: str
    evidence: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()
    unchecked: int = 0
    snippet: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two dumps, compared and judged.

    `results`, `unmatched` and `tokens` have the schemas above. `coverage` counts the records of
    both sides and what became of them. `inputs` are the differences that make everything after
    them pointless; `regime` those that are free to vary and explain small ones.
    """

    verdict: Verdict
    divergence: Divergence | None
    results: pa.Table
    unmatched: pa.Table
    tokens: pa.Table
    coverage: Mapping[str, int]
    inputs: tuple[Finding, ...] = ()
    regime: tuple[Finding, ...] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)
    golden: str = ""
    candidate: str = ""

    @property
    def passed(self) -> bool:
        """Whether the comparison is good: all was compared that both sides have, and agrees."""
        return self.verdict in GOOD
