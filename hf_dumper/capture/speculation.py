"""Speculative decoding: one forward verifies several drafted tokens, and accepts some of them.

A verifying forward takes in what is certain, then the drafts; each column predicts the token after
it. With `drafted` drafts it decides `accepted + 1` tokens: those drafts and one of its own. The
columns of the other drafts hold tokens that were never generated.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from transformers import GenerationConfig

from hf_dumper.capture.inputs import RootInputs
from hf_dumper.core.types import Positions, Tick, rejected_position
from hf_dumper.core.verified import Verified
from hf_dumper.errors import CaptureError

EARLY_EXIT: Final = "early exit"
PROMPT_LOOKUP: Final = "prompt lookup"
OTHER_TOKENIZER: Final = "assistant model with another tokenizer"
ASSISTANT: Final = "assistant model"
"""Where drafts come from."""

DRAFT_FORWARD: Final = "a forward of the model that drafts"
"""Reason why such a forward is not recorded."""


class Speculation:
    """What one generation drafted and verified; `drafter` says where its drafts come from."""

    def __init__(self, drafter: str) -> None:
        """Know of no forward yet."""
        self.drafter = drafter
        self.verified: list[Verified] = []
        self._tick: Tick | None = None

    @property
    def drafted(self) -> int:
        """Number of drafts of that forward, 0 without one."""
        return 0 if self._tick is None else self._tick.drafted

    def begin(self, tick: Tick) -> Tick:
        """Take the tick of a forward; return it with every draft marked as not accepted."""
        self._tick = tick
        return _marked(tick, tick.drafted)

    def accept(self, tokens: int) -> tuple[Tick, int]:
        """Take how many tokens the forward decided; return its tick, marked, and the accepted.

        Raises:
            CaptureError: it cannot have decided so many.
        """
        tick, self._tick = self._tick, None
        accepted = tokens - 1
        if tick is None or not 0 <= accepted <= tick.drafted:
            drafted = None if tick is None else tick.drafted
            msg = f"A forward with {drafted} drafts decided {tokens} tokens; which is not known."
            raise CaptureError(msg)
        self.verified.append(Verified(tick.forward, tick.token, tick.drafted, accepted))
        return _marked(tick, tick.drafted - accepted), accepted

    def facts(self) -> dict[str, Any]:
        """Return it JSON-ready; `verified` are [forward, token, drafted, accepted].

        `undecided` is [forward, token, drafted] of one that was interrupted, None without.
        """
        tick = self._tick
        return {
            "drafter": self.drafter,
            "forwards": len(self.verified),
            "drafted": sum(v.drafted for v in self.verified),
            "accepted": sum(v.accepted for v in self.verified),
            "rejected": sum(v.rejected for v in self.verified),
            "verified": [list(v) for v in self.verified],
            "undecided": None if tick is None else [tick.forward, tick.token, tick.drafted],
        }


def drafter_of(config: GenerationConfig, values: Mapping[str, Any]) -> str | None:
    """Return where the drafts of an assisted generation come from, None where nothing is known.

    The order is that of `_get_candidate_generator` of transformers 5.23.
    """
    if config.assistant_early_exit is not None:
        return EARLY_EXIT
    if config.prompt_lookup_num_tokens is not None:
        return PROMPT_LOOKUP
    kind = type(values.get("assistant_model")).__name__
    new = (getattr(config, name, None) for name in ("use_mtp", "speculation_type"))
    others = *new, kind.startswith("Gemma4")
    if any(others) or values.get("assistant_model") is None:
        return None
    translated = ("tokenizer", "assistant_tokenizer")
    is_other = all(values.get(name) is not None for name in translated)
    return OTHER_TOKENIZER if is_other else ASSISTANT


def is_draft(options: Mapping[str, Any]) -> bool:
    """Tell whether the options of a `generate()` are those of a drafter."""
    return bool(getattr(options.get("generation_config"), "is_assistant", False))


def drafted_columns(inputs: RootInputs, past: int, token: int, prompt_length: int | None) -> int:
    """Return how many of the last columns of a forward are drafts.

    Raises:
        CaptureError: the prompt's length is not known.
    """
    if token:
        return inputs.cols - 1
    if inputs.ids is None:  # embeddings, to which nothing can be added
        return 0
    if prompt_length is None:
        msg = "What is prompt and what is draft in the first forward is not known."
        raise CaptureError(msg)
    return past + inputs.cols - prompt_length


def _marked(tick: Tick, rejected: int) -> Tick:
    if not rejected:
        return tick
    return replace(tick, find_positions=partial(_mark, tick.find_positions, rejected))


def _mark(find: Callable[[], Positions | None], rejected: int) -> Positions | None:
    positions = find()
    if positions is not None:
        last = positions[:, -rejected:]
        last[last >= 0] = rejected_position(last[last >= 0])
    return positions
