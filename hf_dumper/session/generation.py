"""One `generate()` call that is being dumped: what it will do, and what it leaves in `run.json`."""

from typing import Any

from transformers import LogitsProcessor, StoppingCriteria

from hf_dumper.capture.beams import beam_facts
from hf_dumper.capture.calls import GenerateCall
from hf_dumper.capture.facts import Tokenizer, decode, prompt_facts, result_facts
from hf_dumper.capture.lengths import why_ended
from hf_dumper.capture.modes import GenerationPlan, disable_compilation, plan_generation
from hf_dumper.capture.observer import Observer
from hf_dumper.capture.speculation import Speculation
from hf_dumper.errors import CaptureError, UnsupportedGenerationError

Callbacks = tuple[LogitsProcessor, StoppingCriteria]


class Generation:
    """Reads a `generate()` call, adds the session's callbacks to it, and follows it to its result.

    Attributes:
        plan: What the call will do; that of a part once one generates in the model's place.
        part: Name of that part, None where the model generates itself.
        prompt: What goes in, JSON-ready.

    Raises:
        UnsupportedGenerationError: a mode whose token index or positions the clock cannot know.
    """

    def __init__(
        self,
        call: GenerateCall,
        callbacks: Callbacks,
        observer: Observer,
        tokenizer: Tokenizer | None,
    ) -> None:
        """Change the call so that it can be followed; nothing runs yet."""
        self._callbacks, self._observer, self._tokenizer = callbacks, observer, tokenizer
        self.plan: GenerationPlan = self._join(call)
        self.part: str | None = None
        self.prompt = prompt_facts(call.values, tokenizer)
        if self.plan.drafter is not None:
            self.prompt["drafter"] = self.plan.drafter
        self._speculation = None if self.plan.drafter is None else Speculation(self.plan.drafter)
        self._result: dict[str, Any] = {}

    def start(self) -> None:
        """Let the observer record from now on."""
        plan = self.plan
        self._observer.start_generation(
            plan.eos,
            makes_masks=plan.makes_masks,
            beams=plan.beams,
            speculation=self._speculation,
        )

    def follow_part(self, name: str, call: GenerateCall) -> None:
        """Follow the `generate()` of a part, which runs in place of the model's forwards.

        Raises:
            UnsupportedGenerationError: the part generates in a way that is not followed.
        """
        plan = self._join(call)
        if plan.drafter is not None:
            msg = f"Cannot follow speculative decoding by the part {name!r} of a model."
            raise UnsupportedGenerationError(msg)
        self.plan, self.part, self._speculation = plan, name, None
        self.prompt = {**prompt_facts(call.values, self._tokenizer), "part": name}
        self._observer.follow_part(
            call.model, plan.eos, makes_masks=plan.makes_masks, beams=plan.beams
        )

    def refuse_part(self, name: str) -> None:
        """Note that a part generates where its forwards have no place among the tokens."""
        if self.part is None:
            self._observer.snapshot.skip(f"a generate() of the part {name!r} between two forwards")
            return
        msg = (
            f"generate() of the part {name!r} runs after that of {self.part!r}, which is the one "
            "that is followed; dump the part by itself"
        )
        self._observer.fail(CaptureError(msg))

    def take(self, result: Any) -> None:
        """Take what `generate()` returned."""
        prompt_length = self._observer.clock.prompt_length
        facts = result_facts(result, prompt_length)
        beams, ids = self._observer.beams, facts["generated_ids"]
        if beams is not None and ids is not None:
            facts["beams"] = beam_facts(beams, result, ids)
        facts |= self._observer.discard_surplus(result, facts["generated_tokens"])
        facts["length"] = self.plan.limit.facts(prompt_length)
        if ids is not None and prompt_length is not None:
            facts["ended"] = why_ended(ids, self.plan.eos, self.plan.limit, prompt_length)
        facts["generated_text"] = decode(self._tokenizer, ids)
        self._result = facts

    def facts(self) -> dict[str, Any]:
        """Return what is known of the generation by now, JSON-ready."""
        plan = self.plan
        facts: dict[str, Any] = {
            "generation_config": dict(plan.options),
            "followed": plan.followed,
            "auto_compile": plan.auto_compile,
            "length": plan.limit.facts(None),
        }
        if self.part is not None:
            facts["prompt"] = self.prompt
        if self._speculation is not None:
            facts["speculation"] = self._speculation.facts()
        return facts | self._result

    @property
    def tokens(self) -> int | None:
        """Number of tokens that were generated, None where it is not known."""
        found: int | None = self._result.get("generated_tokens")
        return found

    def _join(self, call: GenerateCall) -> GenerationPlan:
        plan = plan_generation(call)
        disable_compilation(call)
        processor, criteria = self._callbacks
        call.add("logits_processor", processor)
        call.add("stopping_criteria", criteria)
        return plan
