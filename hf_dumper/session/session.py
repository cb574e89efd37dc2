"""A session: one model, one configuration, one dump."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self, cast

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from hf_dumper.capture.facts import (
    Tokenizer,
    decode,
    forward_facts,
    input_facts,
    prompt_facts,
    result_facts,
)
from hf_dumper.capture.generation import DumpLogitsProcessor, DumpStoppingCriteria
from hf_dumper.capture.guard import GenerateCall, HookOwner, ModelGuard
from hf_dumper.capture.lengths import why_ended
from hf_dumper.capture.modes import (
    GenerationPlan,
    disable_compilation,
    plan_generation,
    refuse_compiled,
)
from hf_dumper.capture.observer import Observer
from hf_dumper.capture.saved import check_saved
from hf_dumper.capture.seeding import determinism_facts, seeded
from hf_dumper.capture.targets import select_modules
from hf_dumper.config import INPUTS, OUTPUTS, RAISE, STATISTICS, DumpConfig
from hf_dumper.core.selection import parse_tokens
from hf_dumper.core.types import SKIPPED, RunInfo, RunResult
from hf_dumper.errors import (
    CaptureError,
    DumpIncompleteWarning,
    DumpWriteError,
    EmptyDumpError,
    TokenNeverReachedWarning,
)
from hf_dumper.launch import Launch
from hf_dumper.session.forked import forget_when_forked
from hf_dumper.session.model_dump import ModelDump
from hf_dumper.session.notices import warn_caller

_NEXT_FREE: Final[tuple[int, Mapping[str, Any]]] = (-1, {})
"""The number of a run that nobody numbered, and no facts about its source."""


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
        None is a process on its own.
        """
        refuse_compiled(model)
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
        self._runs: list[int] = []
        self._next: tuple[int, Mapping[str, Any]] = _NEXT_FREE
        self._stored = 0
        self._paused = 0
        self._lost = False
        self._raised: Exception | None = None
        self._pid = os.getpid()
        self._scope: ExitStack | None = None
        self._thread: int | None = None
        self._depth = 0
        self._outer_error: BaseException | None = None
        self._hooks = ExitStack()
        self._closed = False
        self._dump = ModelDump(model, config, tokenizer, launch or Launch())
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
        return tuple(self._runs)

    @property
    def last_run(self) -> int | None:
        """Number of the latest run, None before the first."""
        return self._runs[-1] if self._runs else None

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
            "records": self._stored,
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
        if isinstance(run, bool) or not isinstance(run, int) or run < 0:
            msg = f"A run's number is an int from 0, not {run!r}."
            raise CaptureError(msg)
        if self._scope is not None:
            msg = "Number a run before it begins; one is in progress."
            raise CaptureError(msg)
        self._next = run, {} if source is None else {"source": dict(source)}

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Dump nothing while the block runs; the hooks stay.

        Raises:
            CaptureError: a run is in progress.
        """
        if self._scope is not None:
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
        if self._scope is None or self._thread != threading.get_ident():
            msg = f"save({name!r}, ...) works while the dumped model runs, and in its thread only."
            raise CaptureError(msg)
        return self._observer.save(name, tensor)

    def close(self) -> None:
        """Take everything off the model; safe to call twice.

        Raises:
            EmptyDumpError: not one record was dumped.
        """
        if self._release() and not self._stored:
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
        plan = plan_generation(call)
        disable_compilation(call)
        call.add("logits_processor", self._processor)
        call.add("stopping_criteria", self._criteria)
        facts: dict[str, Any] = {
            "generation_config": dict(plan.options),
            "followed": plan.followed,
            "length": plan.limit.facts(None),
        }
        expected = self._expected(plan.max_new_tokens)
        if not self._begin_run("generate", prompt_facts(call.values, self._tokenizer), expected):
            with self.pause():
                yield lambda _result: None
            return
        self._observer.start_generation(plan.eos)
        error: BaseException | None = None
        try:
            yield lambda result: facts.update(self._result(result, plan))
        except BaseException as raised_error:
            error = raised_error
            raise
        finally:
            self._end_run(facts, error)
        self._warn_missed(facts.get("generated_tokens"))

    # --- hooks and callbacks ---------------------------------------------------------------------

    def _before_root(
        self, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._paused or self._closed:
            return
        if self._scope is not None and self._thread != threading.get_ident():
            msg = "Another thread runs the model while it is being dumped; use one thread."
            raise CaptureError(msg)
        self._depth += 1
        if self._depth > 1 and not self._was_interrupted():
            return
        if self._scope is None:
            self._outer_error = sys.exc_info()[1]
            if not self._begin_run("forward", forward_facts(args, kwargs), self._expected(1)):
                return
            self._observer.start_forward()
        self._observer.before_root(args, kwargs)

    def _after_root(self, _module: torch.nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        if self._closed or not self._depth or (self._thread or 0) != threading.get_ident():
            return
        self._depth -= 1
        if self._depth or self._scope is None:
            return
        self._observer.after_root(output)
        if not self._observer.clock.generating:
            # An always-called hook is given None for the output of a forward that raised.
            error = sys.exc_info()[1] if output is None else None
            self._end_run({}, None if error is self._outer_error else error)

    def _was_interrupted(self) -> bool:
        """End a bare forward that left no trace, so that this one is not taken for a part of it.

        torch calls no hook when a forward ends in a KeyboardInterrupt.
        """
        frame, depth = sys._getframe(1), 0
        while frame is not None and depth < 2:
            depth += frame.f_code.co_name == "_call_impl" and frame.f_locals["self"] is self._model
            frame = cast("FrameType", frame.f_back)
        if depth > 1:
            return False
        self._end_run({}, CaptureError("the forward was interrupted"))
        self._depth = 1
        return True

    def _on_scores(self, ids: torch.Tensor, scores: torch.Tensor) -> None:
        if self._follows():
            self._observer.see_scores(ids, scores)

    def _on_token(self, ids: torch.Tensor) -> None:
        if self._follows():
            self._observer.see_token(ids)
            self._stop_if_failed()

    def _follows(self) -> bool:
        """Tell whether a callback belongs to a run.

        Raises:
            CaptureError: a generation that the session cannot see, such as `cls.generate(model)`.
        """
        if self._closed or self._paused or self._lost:
            return False
        if self._scope is None:
            msg = "The session's callbacks run outside of model.generate(), which it watches."
            raise CaptureError(msg)
        return True

    def forget(self) -> None:
        """Leave the model to this forked process, and the dump to the one that it is from."""
        self._closed = True
        self._observer.stop()
        self.disarm()
        self._guard.leave(self)

    # --- runs ------------------------------------------------------------------------------------

    def _begin_run(self, kind: str, prompt: Mapping[str, Any], expected: int) -> bool:
        """Open a run; False when it cannot be written, which is a warning and no more.

        Raises:
            DumpWriteError: it cannot be written, with `on_error="raise"`.
        """
        refuse_compiled(self._model)
        self._lost, self._raised = False, None
        (number, source), self._next = self._next, _NEXT_FREE
        prompt = {**prompt, **source}
        scope = ExitStack()
        if self.config.seed is not None:
            scope.enter_context(seeded(self.config.seed))
        try:
            run = self._dump.open_run(RunInfo(number, kind, determinism_facts(), prompt, expected))
        except OSError as error:
            scope.close()
            self._lost = True
            if self.config.on_error == RAISE:
                self._depth = 0
                msg = f"A run cannot be dumped: {error}"
                raise DumpWriteError(msg) from error
            self._warn_incomplete("A run is not dumped at all", error)
            return False
        except BaseException:  # a dump of something else, or Ctrl-C
            scope.close()
            raise
        self._scope, self._thread = scope, threading.get_ident()
        self._runs.append(run)
        self._observer.open_run(run, self._dump)
        return True

    def _end_run(self, facts: Mapping[str, Any], error: BaseException | None) -> None:
        """Write the run out; what went wrong is written into the run, and told.

        Raises:
            DumpWriteError: with `on_error="raise"`, the run could not be written whole.
            CaptureError: likewise, something could not be recorded.
        """
        scope, self._scope, self._thread, self._depth = self._scope, None, None, 0
        if scope is None:
            return
        if self._pid != os.getpid():  # a forked process has no part in the run
            scope.close()
            return
        observer = self._observer
        known = self._raised is not None and error is self._raised
        try:
            observer.close_run()
            self._dump.flush()  # what is an alias is found where batches are written
        except BaseException as interruption:  # Ctrl-C: the run is ended all the same
            error = interruption
            raise
        finally:
            scope.close()
            failure = self._commit(facts, observer.failure if known else error or observer.failure)
            if failure is not None and not known:
                self._tell(failure, error)

    def _commit(self, facts: Mapping[str, Any], cause: BaseException | None) -> Exception | None:
        """End the run in the dump; return what went wrong on our side."""
        observer, snapshot = self._observer, self._observer.snapshot
        trace = observer.take_trace()
        cause = cause or observer.failure
        inputs = observer.inputs
        described = {} if inputs is None else input_facts(self._model, inputs)
        counts = {**snapshot.counts, "skipped_by_reason": dict(snapshot.skipped), "discarded": 0}
        self._stored += snapshot.counts.total() - snapshot.counts[SKIPPED]
        reason = None if cause is None else f"{type(cause).__name__}: {cause}"
        facts = {**facts, "inputs": described}
        result = RunResult(facts, counts, reason, observer.left_out, trace)
        try:
            self._dump.commit_run(result)
        except DumpWriteError as failure:
            return failure
        return observer.failure

    def _tell(self, failure: Exception, error: BaseException | None) -> None:
        """Warn of a dump that is not whole, or raise; an error that is under way comes first."""
        if error is None and self.config.on_error == RAISE:
            raise self._as_error(failure) from failure
        self._warn_incomplete(self._incomplete, failure)

    def _stop_if_failed(self) -> None:
        """Record nothing more once the writer has failed.

        Raises:
            DumpWriteError: the writer failed, and `on_error="raise"` wants the generation to stop.
            CaptureError: likewise, something could not be recorded.
        """
        if self._dump.failure is not None:
            self._observer.stop()
        failure = self._dump.failure or self._observer.failure
        if failure is not None and self.config.on_error == RAISE:
            self._raised = self._as_error(failure)
            raise self._raised from failure

    def _as_error(self, failure: BaseException) -> DumpWriteError | CaptureError:
        ours = failure is self._observer.failure
        return (CaptureError if ours else DumpWriteError)(f"{self._incomplete}: {failure}")

    @property
    def _incomplete(self) -> str:
        return f"Run {self.last_run} in {self.path} is incomplete"

    def _result(self, result: Any, plan: GenerationPlan) -> dict[str, Any]:
        prompt_length = self._observer.clock.prompt_length
        facts = result_facts(result, prompt_length)
        facts["length"] = plan.limit.facts(prompt_length)
        if facts["generated_ids"] is not None and prompt_length is not None:
            ids = facts["generated_ids"]
            facts["ended"] = why_ended(ids, plan.eos, plan.limit, prompt_length)
        facts["generated_text"] = decode(self._tokenizer, facts["generated_ids"])
        return facts

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
        self._end_run({}, CaptureError("the session was closed in the middle of a run"))
        self.disarm()
        self._guard.leave(self)
        self._dump.close()
        return True

    def _why_empty(self) -> str:
        if not self._runs:
            return (
                f"Nothing was dumped to {str(self.path)!r}: the model did not run before close()."
            )
        skipped = self._observer.snapshot.skipped
        seen = f" Skipped in the last run: {dict(skipped)}." if skipped else ""
        return (
            f"Nothing was dumped to {str(self.path)!r}, runs: {len(self._runs)}. token_range="
            f"{self.config.token_range!r} was never reached, or nothing selected was called.{seen}"
        )

    def _warn_missed(self, tokens: int | None) -> None:
        missed = [] if tokens is None else self._tokens.missed(tokens)
        if missed:
            msg = f"Tokens {missed} of token_range were not reached: {tokens} were generated."
            warn_caller(msg, TokenNeverReachedWarning)

    def _warn_incomplete(self, what: str, error: BaseException) -> None:
        warn_caller(f"{what}: {error}", DumpIncompleteWarning)
