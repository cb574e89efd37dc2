"""Which rows of two evaluations were judged unlike."""

from dataclasses import dataclass

from hf_dumper.badcases.results import Result, Results
from hf_dumper.errors import PromptError
from hf_dumper.prompts.prompt import Prompt


@dataclass(frozen=True, slots=True)
class BadCase:
    """A prompt whose answer was judged right on one side and wrong on the other."""

    id: str
    prompt: Prompt
    golden: Result
    candidate: Result


@dataclass(frozen=True, slots=True)
class BadCases:
    """What became of every id of two files.

    Attributes:
        cases: Judged unlike, in the golden's order.
        agreeing: How many were judged alike.
        other_prompts: Ids whose prompts are not the same, so that nothing follows from them.
        only_golden: Ids that the candidate's file lacks.
        only_candidate: Ids that the golden's file lacks.
        doubled: Ids that one of the files has more than once; which row is meant is unknown.
    """

    cases: tuple[BadCase, ...]
    agreeing: int
    other_prompts: tuple[str, ...] = ()
    only_golden: tuple[str, ...] = ()
    only_candidate: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether every row of both files has its partner."""
        return not (self.other_prompts or self.only_golden or self.only_candidate or self.doubled)


def find_cases(golden: Results, candidate: Results) -> BadCases:
    """Match two evaluations by id and return the rows that they judge unlike.

    Raises:
        PromptError: no id is in both.
    """
    doubled = tuple(dict.fromkeys((*golden.doubled, *candidate.doubled)))
    ours, theirs = ([i for i in side.rows if i not in doubled] for side in (golden, candidate))
    both = [name for name in ours if name in candidate.rows]
    if not both:
        msg = f"No id of {golden.path} is in {candidate.path}, each id taken once."
        raise PromptError(msg)
    pairs = [(golden.rows[name], candidate.rows[name]) for name in both]
    same = [(a, b) for a, b in pairs if _asked(a) == _asked(b)]
    return BadCases(
        tuple(_case(a, b) for a, b in same if a.passed is not b.passed),
        agreeing=sum(a.passed is b.passed for a, b in same),
        other_prompts=tuple(a.id for a, b in pairs if _asked(a) != _asked(b)),
        only_golden=tuple(name for name in ours if name not in candidate.rows),
        only_candidate=tuple(name for name in theirs if name not in golden.rows),
        doubled=doubled,
    )


def _asked(result: Result) -> object:
    prompt = result.prompt
    return prompt and (prompt.text, prompt.messages)


def _case(golden: Result, candidate: Result) -> BadCase:
    if golden.prompt is None:
        msg = f"The results with id {golden.id!r} were read without their prompts."
        raise PromptError(msg)
    return BadCase(golden.id, golden.prompt, golden, candidate)
