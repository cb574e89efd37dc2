"""At which token the answers of two models part, from dumps of just the bad cases."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from hf_dumper.badcases.cases import BadCase
from hf_dumper.badcases.runs import Chosen, Place, find_runs, kept_tokenizer, new_text
from hf_dumper.comparison import LimitsLike, compare
from hf_dumper.config import DumpConfig
from hf_dumper.core.protocols import DumpReader
from hf_dumper.core.verdicts import Comparison
from hf_dumper.model import register_hook
from hf_dumper.prompts.prompt import Prompt
from hf_dumper.runner import OnToken, dump_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTED, FOLLOWED, ALIKE = "tokens differ", "first choices differ", "no token differs"
NOT_COMPARED = "not compared"

_FROM_TOKENS = (
    *("token", "position", "golden_id", "candidate_id", "golden_text", "candidate_text"),
    *("margin", "margin_ulp", "kl", "verdict", "reason"),
)


@dataclass(frozen=True, slots=True)
class Explained:
    """What the logits say of one bad case.

    Attributes:
        id: That of the case.
        prompt: Its prompt, or what its last message says.
        golden_passed: How the golden's evaluation judged it.
        candidate_passed: How the candidate's did.
        status: "tokens differ"; "first choices differ": the candidate followed the golden's tokens,
            but would have chosen another; "no token differs": among `tokens`; or "not compared".
        run: Of the golden dump; None where there is none.
        row: Of that run.
        tokens: How many tokens both sides have.
        token: The first differing one, 0 being the one that the prefill predicts, and `position`
            that of the last token before it; None without one, as all that follows.
        golden_id: What the golden side chose there; the candidate's is its first choice where it
            followed. Texts are None without a tokenizer.
        margin: Golden logit of the first choice less that of the second, `margin_ulp` in units of
            last place; `verdict` and `reason` as in `Comparison.tokens`.
        kl: KL(golden || candidate) there in nats; where no token differs, the largest of all.
        golden_reproduced: Whether the answer in the file and the tokens that were dumped agree as
            far as the shorter one goes, outer blanks apart; None without answer or text.
        candidate_reproduced: The same of the other side.
    """

    id: str
    prompt: str
    golden_passed: bool | None
    candidate_passed: bool | None
    status: str
    reason: str = ""
    run: int | None = None
    row: int | None = None
    tokens: int = 0
    token: int | None = None
    position: int | None = None
    golden_id: int | None = None
    candidate_id: int | None = None
    golden_text: str | None = None
    candidate_text: str | None = None
    margin: float | None = None
    margin_ulp: float | None = None
    kl: float | None = None
    verdict: str | None = None
    golden_reproduced: bool | None = None
    candidate_reproduced: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, but for numbers that are not finite."""
        return asdict(self)


def dump_cases(
    model: "PreTrainedModel",
    tokenizer: Any,
    cases: Sequence[BadCase],
    path: str | PathLike[str],
    *,
    max_new_tokens: int,
    chat: bool = False,
    on_progress: OnToken | None = None,
) -> None:
    """Dump the last logits of every token that a model generates from the cases, greedily.

    Each prompt is one run, also where several cases share it.
    """
    prompts = list({_key(case.prompt): case.prompt for case in cases}.values())
    config = DumpConfig(path, "all", dump_last_logits=True)
    with register_hook(model, config, tokenizer=tokenizer):
        dump_prompts(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            chat=chat,
            on_progress=on_progress,
            do_sample=False,
        )


def explain(
    cases: Sequence[BadCase],
    golden: DumpReader,
    candidate: DumpReader,
    *,
    chat: bool = False,
    limits: LimitsLike = None,
) -> tuple[list[Explained], Comparison | None]:
    """Compare the runs of the cases in two dumps and say where each case parts.

    Runs are found by the token ids of their prompts, with the tokenizer that a dump keeps. The
    dumps may hold more than the cases. The comparison is None where none could be compared.

    Raises:
        PromptError: neither dump keeps a tokenizer.
        DumpFormatError: a dump is damaged.
    """
    tokenizer = kept_tokenizer(golden, candidate)
    sides = [find_runs(reader, cases, tokenizer, chat=chat) for reader in (golden, candidate)]
    pairs = [(case, sides[0][case.id], sides[1][case.id]) for case in cases]
    found = _compared(golden, candidate, pairs, limits)
    rows = [] if found is None else found.tokens.to_pylist()
    explained = []
    for case, ours, theirs in pairs:
        if isinstance(ours, Place) and isinstance(theirs, Place):
            mine = [r for r in rows if (r["run"], r["row"]) == (ours.run, ours.row)]
            said = _said(case, (golden, ours), (candidate, theirs), tokenizer)
            told = _explained(case, mine, said | {"run": ours.run, "row": ours.row})
            explained.append(_with_choice(told, candidate, theirs, tokenizer))
        else:
            reason = "; ".join(side for side in (ours, theirs) if isinstance(side, str))
            explained.append(Explained(**_facts(case), status=NOT_COMPARED, reason=reason))
    return explained, found


Pairs = Sequence[tuple[BadCase, Place | str, Place | str]]


def _compared(
    golden: DumpReader, candidate: DumpReader, pairs: Pairs, limits: LimitsLike
) -> Comparison | None:
    """Compare the runs that both sides have."""
    both = [(a, b) for _, a, b in pairs if isinstance(a, Place) and isinstance(b, Place)]
    if not both:
        return None
    runs = [sorted({place.run for place in side}) for side in zip(*both, strict=True)]
    views: list[Any] = [Chosen(golden, runs[0]), Chosen(candidate, runs[1])]
    return compare(views[0], views[1], limits=limits)


def _explained(
    case: BadCase, rows: Sequence[Mapping[str, Any]], said: Mapping[str, Any]
) -> Explained:
    facts = {**_facts(case), **said, "tokens": len(rows)}
    if not rows:
        reason = "the comparison has no tokens of this run; one side may be incomplete"
        return Explained(**facts, status=NOT_COMPARED, reason=reason)
    for row in rows:
        values = {name: row[name] for name in _FROM_TOKENS}
        if row["golden_id"] != row["candidate_id"]:
            return Explained(**facts, **values, status=PARTED)
        if row["top1_equal"] is False:
            return Explained(**facts, **values, status=FOLLOWED)
    known = [row["kl"] for row in rows if row["kl"] is not None]
    reason = f"among {len(rows)} tokens; KL is the largest of them"
    return Explained(**facts, status=ALIKE, reason=reason, kl=max(known, default=None))


def _with_choice(told: Explained, reader: DumpReader, place: Place, tokenizer: Any) -> Explained:
    """Put the candidate's own first choice in the place of the token that it followed."""
    if told.status != FOLLOWED:
        return told
    rows = reader.trace(place.run).to_pylist()
    mine = (r["top_ids"] for r in rows if (r["token"], r["row"]) == (told.token, place.row))
    chosen = next((ids[0] for ids in mine if ids), None)
    text = None if chosen is None else tokenizer.decode([chosen])
    return replace(told, candidate_id=chosen, candidate_text=text)


def _said(
    case: BadCase, ours: tuple[DumpReader, Place], theirs: tuple[DumpReader, Place], tokenizer: Any
) -> dict[str, bool | None]:
    """Tell for each side whether the dump's tokens are the answer of the file."""
    return {
        "golden_reproduced": _agrees(case.golden.answer, new_text(*ours, tokenizer)),
        "candidate_reproduced": _agrees(case.candidate.answer, new_text(*theirs, tokenizer)),
    }


def _facts(case: BadCase) -> dict[str, Any]:
    return {
        "id": case.id,
        "prompt": case.prompt.shown,
        "golden_passed": case.golden.passed,
        "candidate_passed": case.candidate.passed,
    }


def _agrees(answer: str | None, text: str) -> bool | None:
    if answer is None:
        return None
    ours, theirs = answer.strip(), text.strip()
    return ours.startswith(theirs) or theirs.startswith(ours)


def _key(prompt: Prompt) -> str:
    return repr((prompt.text, prompt.messages))
