"""How long a generation may become, who said so, and why each row of it ended."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

GIVEN = "an argument of generate()"
CONFIG = "the generation_config given to generate()"
MODEL = "the model's generation config"
DEFAULT = "the default of transformers"

_DEFAULT_TOKENS = 20
"""What generate() makes where nobody set a length (transformers 5.23)."""


@dataclass(frozen=True, slots=True)
class LengthLimit:
    """The option of `generate()` that bounds its length.

    Attributes:
        name: `max_new_tokens`, or `max_length`, which counts the prompt, too.
        value: Its value; for the default the number of new tokens.
        set_by: Where the value comes from.
        embedded: Columns of a prompt that was given as embeddings without ids; `max_length` counts
            them, though they are not in the ids that are returned.
        positions: Positions of the model, which bound the default; None where they do not.
        criteria: Names of what else may end a row.
    """

    name: str
    value: int
    set_by: str
    embedded: int = 0
    positions: int | None = None
    criteria: tuple[str, ...] = ()

    def new_tokens(self, prompt_length: int) -> int:
        """Return how many tokens may follow a prompt of that many ids."""
        if self.name == "max_new_tokens":
            return self.value
        if self.set_by == DEFAULT:
            bound = self.value if self.positions is None else self.positions - prompt_length
            return min(self.value, bound)
        return self.value - prompt_length - self.embedded

    def facts(self, prompt_length: int | None) -> dict[str, Any]:
        """Return it JSON-ready, with what it comes to after this prompt."""
        return {
            "name": self.name,
            "value": self.value,
            "set_by": self.set_by,
            "prompt_length": prompt_length,
            "max_new_tokens": None if prompt_length is None else self.new_tokens(prompt_length),
        }


def length_limit(model: Any, values: Mapping[str, Any], effective: GenerationConfig) -> LengthLimit:
    """Return what bounds a `generate()` call with these arguments, and who set it.

    `effective` is the configuration that results of the arguments, of a given configuration and
    of the model's own, in this order of precedence (transformers 5.23).
    """
    name = "max_length" if effective.max_new_tokens is None else "max_new_tokens"
    set_by = _set_by(name, model, values)
    value = getattr(effective, name)
    if set_by == DEFAULT or value is None:
        value = _DEFAULT_TOKENS
    return LengthLimit(
        name,
        int(value),
        set_by,
        0 if getattr(model.config, "is_encoder_decoder", False) else _embedded(values),
        getattr(model.config, "max_position_embeddings", None),
        _criteria(values, effective),
    )


def why_ended(
    ids: Sequence[Sequence[int]], eos: Collection[int], limit: LengthLimit, prompt_length: int
) -> list[dict[str, Any]]:
    """Return for each row of new ids its last token and why there were no more.

    `reason` is "end of sequence" with the `id`, "length", or the names of what may have done it.
    """
    return [_why(list(row), eos, limit, prompt_length) for row in ids]


def _why(
    row: list[int], eos: Collection[int], limit: LengthLimit, prompt_length: int
) -> dict[str, Any]:
    last = next((i for i, token in enumerate(row) if token in eos), None)
    if last is not None:
        return {"token": last, "reason": "end of sequence", "id": row[last]}
    others = " or ".join(limit.criteria)
    if len(row) < limit.new_tokens(prompt_length):
        return {"token": len(row) - 1, "reason": others or "unknown"}
    return {"token": len(row) - 1, "reason": f"length or {others}" if others else "length"}


def _set_by(name: str, model: Any, values: Mapping[str, Any]) -> str:
    if values.get(name) is not None:
        return GIVEN
    if getattr(values.get("generation_config"), name, None) is not None:
        return CONFIG
    return MODEL if getattr(model.generation_config, name, None) is not None else DEFAULT


def _embedded(values: Mapping[str, Any]) -> int:
    embeds, ids = values.get("inputs_embeds"), values.get("input_ids", values.get("inputs"))
    return embeds.shape[1] if isinstance(embeds, torch.Tensor) and ids is None else 0


def _criteria(values: Mapping[str, Any], effective: GenerationConfig) -> tuple[str, ...]:
    given = values.get("stopping_criteria") or ()
    names = [type(c).__name__ for c in given if getattr(c, "stops", True)]
    names += [n for n in ("max_time", "stop_strings") if getattr(effective, n, None) is not None]
    return tuple(names)
