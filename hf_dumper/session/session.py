"""A session: one model, one configuration, one dump."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, cast

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from hf_dumper.capture.adapters import base_of
from hf_dumper.capture.calls import GenerateCall
from hf_dumper.capture.eager import eager, refuse_compiled
from hf_dumper.capture.facts import Tokenizer, forward_facts
from hf_dumper.capture.generation import DumpLogitsProcessor, DumpStoppingCriteria
from hf_dumper.capture.guard import HookOwner, ModelGuard
from hf_dumper.capture.naming import without_wrapper
from hf_dumper.capture.observer import Observer
from hf_dumper.capture.saved import check_saved
from hf_dumper.capture.speculation import DRAFT_FORWARD
from hf_dumper.capture.targets import select_modules
from hf_dumper.config import INPUTS, OUTPUTS, STATISTICS, DumpConfig
from hf_dumper.core.selection import parse_tokens
from hf_dumper.errors import (
    CaptureError,
    EmptyDumpError,
    TokenNeverReachedWarning,
)
from hf_dumper.launch import Launch
from hf_dumper.session.forked import forget_when_forked
from hf_dumper.session.generation import Generation
from hf_dumper.session.model_dump import ModelDump
from hf_dumper.session.notices import warn_caller
from hf_dumper.session.runs import RunKeeper


class DumpSession(HookOwner):
    """Dumps every run of a model until it is closed; also a context manager.

    A run is one `generate()` of the model, or one bare forward outside of it, and lies complete on
    disk when that call returns. Hooks read and never write: tokens and logits are those of the
    plain model.

    Attributes:
        config: What is dumped.

    Raises:
        SelectionError: `config` selects no module.
        CompiledModelError: the model is compiled already.
        DumpIdentityError: the dump's folder holds a dump of something else.
        DumpWriteError: the folder cannot be written.
        LaunchError: another process of the launch failed to make its session.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        config: DumpConfig,
        *,
        tokenizer: Tokenizer | None = None,
        launch: Launch | None = None,
    ) -> None:
        """Check the selection, create the dump's folder and arm the hooks.

        The processes of one `launch` write one dump: all of them make a session, at the same time.
        None is a process on its own. Of a model with adapters, the model inside is dumped.
        """
        if config.allow_eager:
            model = without_wrapper(model)
        else:
            refuse_compiled(model)
        model = base_of(model)
        self.config = config
        self._model = model
        self._tokenizer = tokenizer
        self._tokens = parse_tokens(config.token_range)
        selected = select_modules(model, config)
        modules = [] if config.dump_last_logits else selected
        self._observer = Observer(
            model,
            modules,
            self._tokens,
            last_logits=config.dump_last_logits,
            cache=config.dump_kv_cache,
            inputs=config.tensor_part != OUTPUTS,
            outputs=config.tensor_part != INPUTS,
            device=config.device_id,
            values=config.dump_statistics_mode != STATISTICS,
        )
        self._processor = DumpLogitsProcessor(self._on_scores)
        self._criteria = DumpStoppingCriteria(self._on_token)
        self._paused = 0
        self._depth = 0
        self._drafting = 0
        self._generation: Generation | None = None
        self._outer_error: BaseException | None = None
        self._hooks = ExitStack()
        self._closed = False
        self._dump = ModelDump(model, config, tokenizer, launch or Launch())
        self._runs = RunKeeper(model, config, self._observer, self._dump)
        self._guard = ModelGuard.of(model)
        self._guard.join(self)
        self.arm()
        forget_when_forked(self)
        model.__dict__["dump"] = self

    @property
    def path(self) -> Path:
        """Folder of the dump."""
        return self._dump.path

    @property
    def runs(self) -> tuple[int, ...]:
        """Numbers of the runs that this session dumped, in order."""
        return tuple(self._runs.numbers)

    @property
    def last_run(self) -> int | None:
        """Number of the latest run, None before the first."""
        return self._runs.last

    @property
    def closed(self) -> bool:
        """Whether the session is over and the model plain again."""
        return self._closed

    @property
    def logits_processor(self) -> LogitsProcessorList:
        """Half of what follows `generate()`; pass it, or let the session add it."""
        return LogitsProcessorList([self._processor])

    @property
    def stopping_criteria(self) -> StoppingCriteriaList:
        """The other half; it never stops a generation."""
        return StoppingCriteriaList([self._criteria])

    def summary(self) -> dict[str, Any]:
        """Return the path, the runs and how many records they hold."""
        return {
            "path": str(self.path),
            "runs": self.runs,
            "records": self._runs.stored,
            "closed": self._closed,
        }

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Add a JSON-ready fact about the whole dump to its manifest, outside of its identity."""
        self._dump.note(name, value)

    def number_next(self, run: int, source: Mapping[str, Any] | None = None) -> None:
        """Give the next run this number, from 0, instead of the next free one.

        A number that the dump has already is a DumpWriteError when that run begins. `source` are
        JSON-ready facts about where its prompts come from, which `run.json` keeps under "prompt".

        Raises:
            CaptureError: the number is none, or a run is in progress.
        """
        self._runs.number_next(run, source)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Dump nothing while the block runs; the hooks stay.

        Raises:
            CaptureError: a run is in progress.
        """
        if self._runs.is_open:
            msg = "Cannot pause in the middle of a run; pause before generate()."
            raise CaptureError(msg)
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def save(self, name: str, tensor: torch.Tensor) -> bool:
        """Record a tensor of your own under the token and the module in progress.

        The module is the innermost one whose forward is in progress, else the root; the slot is
        `saved.<name>`. Saving a name again in the same forward and module gives the next `call`.
        The tensor is copied at once and stays as it is.

        Returns:
            Whether it was recorded: False while paused, after an error of the dump, and for tokens
            outside of `token_range`.

        Raises:
            CaptureError: no run is in progress, or not in this thread; between two forwards; a
                value that is no tensor, or a name that is none.
        """
        check_saved(name, tensor)
        if self._paused and not self._closed:
            return False
        if not self._runs.is_here:
            msg = f"save({name!r}, ...) works while the dumped model runs, and in its thread only."
            raise CaptureError(msg)
        return self._observer.save(name, tensor)

    def close(self) -> None:
        """Take everything off the model; safe to call twice.

        Raises:
            EmptyDumpError: not one record was dumped.
        """
        if self._release() and not self._runs.stored:
            raise EmptyDumpError(self._why_empty())

    def __enter__(self) -> Self:
        """Return the session, which is armed already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; an error that is under way is not replaced by that of an empty dump."""
        if kind is None:
            self.close()
        else:
            self._release()

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to be copied with something else that refers to it."""
        msg = "A DumpSession cannot be copied or pickled; the dumped model can."
        raise CaptureError(msg)

    # --- hooks on and off ------------------------------------------------------------------------

    def arm(self) -> None:
        """Put the hooks on the model: the clock first, then the taps, the end of the run last."""
        if self.config.allow_eager:
            self._hooks.enter_context(eager())
        root = self._model
        before = root.register_forward_pre_hook(self._before_root, with_kwargs=True)
        self._hooks.enter_context(before)
        self._observer.attach(self._hooks)
        after = root.register_forward_hook(self._after_root, with_kwargs=True, always_call=True)
        self._hooks.enter_context(after)

    def disarm(self) -> None:
        """Take the hooks off the model."""
        self._hooks.close()

    @contextmanager
    def watch_generate(self, call: GenerateCall) -> Iterator[Callable[[Any], None]]:
        """Dump one `generate()` call as a run."""
        if self._paused:
            yield lambda _result: None
            return
        callbacks = self._processor, self._criteria
        generation = Generation(call, callbacks, self._observer, self._tokenizer)
        if not self._begin("generate", generation.prompt, generation.plan.max_new_tokens):
            with self.pause():
                yield lambda _result: None
            return
        self._generation = generation
        generation.start()
        error: BaseException | None = None
        try:
            yield generation.take
        except BaseException as raised_error:
            error = raised_error
            raise
        finally:
            self._generation = None
            self._end(generation.facts(), error)
        self._warn_missed(generation.tokens)

    @contextmanager
    def watch_part(self, name: str, call: GenerateCall) -> Iterator[None]:
        """Follow the `generate()` of a part of the model, should it run in the model's place."""
        generation = self._generation
        if generation is None or not self._runs.is_here or self._depth:
            yield
            return
        if generation.part is not None or self._observer.clock.forward >= 0:
            generation.refuse_part(name)
            yield
            return
        generation.follow_part(name, call)
        part = call.model
        before = part.register_forward_pre_hook(self._before_root, with_kwargs=True, prepend=True)
        with (
            before,
            part.register_forward_hook(self._after_root, with_kwargs=True, always_call=True),
        ):
            yield

    def begin_drafts(self, length: int) -> None:
        """Learn that a drafter is about to run, and how long the ids of the prompt are."""
        if self._runs.is_here and not self._paused:
            self._observer.begin_drafts(length)

    @contextmanager
    def watch_draft(self) -> Iterator[None]:
        """Count the forwards of the block, which draft tokens, and record nothing of them."""
        self._drafting += 1
        try:
            yield
        finally:
            self._drafting -= 1

    # --- hooks and callbacks ---------------------------------------------------------------------

    def _before_root(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._paused or self._closed or self._is_beside(module):
            return
        if self._runs.is_open and not self._runs.is_here:
            msg = "Another thread runs the model while it is being dumped; use one thread."
            raise CaptureError(msg)
        if self._drafting:
            self._observer.snapshot.skip(DRAFT_FORWARD)
            return
        self._depth += 1
        if self._depth > 1 and not self._was_interrupted():
            return
        if not self._runs.is_open:
            self._outer_error = sys.exc_info()[1]
            if not self._begin("forward", forward_facts(args, kwargs), 1):
                return
            self._observer.start_forward()
        self._observer.before_root(args, kwargs)

    def _is_beside(self, module: torch.nn.Module) -> bool:
        """Tell whether the model runs where a part of it is followed in its place."""
        is_beside = self._generation is not None and module is not self._observer.followed
        if is_beside:
            self._observer.snapshot.skip("a forward of the model where a part of it generates")
        return is_beside

    def _after_root(self, module: torch.nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        if self._closed or self._drafting or not self._depth or not self._runs.is_here:
            return
        if self._generation is not None and module is not self._observer.followed:
            return
        self._depth -= 1
        if self._depth:
            return
        self._observer.after_root(output)
        if not self._observer.clock.generating:
            # An always-called hook is given None for the output of a forward that raised.
            error = sys.exc_info()[1] if output is None else None
            self._end({}, None if error is self._outer_error else error)

    def _was_interrupted(self) -> bool:
        """End a bare forward that left no trace, so that this one is not taken for a part of it.

        torch calls no hook when a forward ends in a KeyboardInterrupt.
        """
        followed = self._observer.followed
        frame, depth = sys._getframe(1), 0
        while frame is not None and depth < 2:
            depth += frame.f_code.co_name == "_call_impl" and frame.f_locals["self"] is followed
            frame = cast("FrameType", frame.f_back)
        if depth > 1:
            return False
        self._end({}, CaptureError("the forward was interrupted"))
        self._depth = 1
        return True

    def _begin(self, kind: str, prompt: Mapping[str, Any], forwards: int | None) -> bool:
        try:
            return self._runs.begin(kind, prompt, self._expected(forwards))
        except BaseException:
            self._depth = 0
            raise

    def _end(self, facts: Mapping[str, Any], error: BaseException | None) -> None:
        self._depth = 0
        self._runs.end(facts, error)

    def _on_scores(self, ids: torch.Tensor, scores: torch.Tensor) -> None:
        if self._follows():
            self._observer.see_scores(ids, scores)

    def _on_token(self, ids: torch.Tensor) -> None:
        if self._follows():
            self._observer.see_token(ids)
            self._runs.stop_if_failed()

    def _follows(self) -> bool:
        """Tell whether a callback belongs to a run.

        Raises:
            CaptureError: a generation that the session cannot see, such as `cls.generate(model)`.
        """
        if self._closed or self._paused or self._runs.is_lost:
            return False
        if not self._runs.is_open:
            msg = "The session's callbacks run outside of model.generate(), which it watches."
            raise CaptureError(msg)
        return True

    def forget(self) -> None:
        """Leave the model to this forked process, and the dump to the one that it is from."""
        self._closed = True
        self._observer.stop()
        self.disarm()
        self._guard.leave(self)

    # --- facts of a run --------------------------------------------------------------------------

    def _expected(self, forwards: int | None) -> int:
        """Estimate the records of a run, for room in the first shard's header."""
        tokens = forwards or 16
        wanted = self._tokens.wanted
        tokens = tokens if wanted is None else min(tokens, len(wanted))
        return 3 * max(1, self._observer.tapped) * tokens

    # --- the end ---------------------------------------------------------------------------------

    def _release(self) -> bool:
        """Leave the model; False when that was done before."""
        if self._closed:
            return False
        self._closed = True
        self._end({}, CaptureError("the session was closed in the middle of a run"))
        self.disarm()
        self._guard.leave(self)
        self._dump.close()
        return True

    def _why_empty(self) -> str:
        if not self._runs.numbers:
            return (
                f"Nothing was dumped to {str(self.path)!r}: the model did not run before close()."
            )
        skipped = self._observer.snapshot.skipped
        seen = f" Skipped in the last run: {dict(skipped)}." if skipped else ""
        return (
            f"Nothing was dumped to {str(self.path)!r}, runs: {len(self.runs)}. token_range="
            f"{self.config.token_range!r} was never reached, or nothing selected was called.{seen}"
        )

    def _warn_missed(self, tokens: int | None) -> None:
        missed = [] if tokens is None else self._tokens.missed(tokens)
        if missed:
            msg = f"Tokens {missed} of token_range were not reached: {tokens} were generated."
            warn_caller(msg, TokenNeverReachedWarning)
