"""Follows one model through its forwards: clock, taps and snapshot working together.

The observer knows nothing of files. A session opens a run, the model runs, the observer turns what
the hooks see into batches, and the session closes the run.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

import torch

from hf_dumper.capture.beams import BeamRows
from hf_dumper.capture.caches import CacheReader
from hf_dumper.capture.clock import TokenClock
from hf_dumper.capture.experts import routed_modules
from hf_dumper.capture.facts import is_stop_deferred
from hf_dumper.capture.guidance import runs_aside
from hf_dumper.capture.inputs import RootInputs, named_arguments, read_inputs
from hf_dumper.capture.saved import SavePlaces
from hf_dumper.capture.snapshot import Snapshot
from hf_dumper.capture.speculation import Speculation
from hf_dumper.capture.static_masks import Generated
from hf_dumper.capture.taps import announce_kernels, new_intake, tap_modules
from hf_dumper.capture.trace import TraceRecorder
from hf_dumper.capture.verifying import DecisionRecorder
from hf_dumper.core.arena import Arena
from hf_dumper.core.selection import TokenSelection
from hf_dumper.core.trace import NO_ID, TokenTrace
from hf_dumper.core.types import ROOT, Batch, Tick
from hf_dumper.errors import CaptureError

_NO_FORWARD = (
    "generate() of this class never calls the model, nor a part of it that has a generate() of its "
    "own, so its forwards cannot be told from each other; dump the part that it calls"
)


class BatchSink(Protocol):
    """What an observer asks of the dump it records into."""

    @property
    def arena(self) -> Arena:
        """Where the bytes of the batches live."""

    def write(self, batch: Batch) -> None:
        """Take a batch."""

    def hurry(self) -> None:
        """Deal with what was taken now: the model is in a long kernel."""

    def flush(self, before: int | None = None) -> None:
        """Wait until what was taken is safe; `before` is the first forward that need not be."""


class Observer:
    """Records the forwards of one run at a time.

    `modules` are (name, module) of what is tapped; empty for last logits only. A failure of ours
    ends the recording of the run, is kept in `failure`, and never reaches the model. `left_out`
    counts the forwards that were to be recorded after that. `followed` is the module whose forwards
    make the tokens: the model, or the part of it that generates in its place.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        modules: list[tuple[str, torch.nn.Module]],
        tokens: TokenSelection,
        *,
        last_logits: bool,
        cache: bool = False,
        inputs: bool = True,
        outputs: bool = True,
        device: int | None = None,
        values: bool = True,
    ) -> None:
        """Prepare to watch; `attach` sets the hooks.

        `inputs` and `outputs` say which are recorded, `device` is the index of the one accelerator
        whose tensors are, None means all. Without `values`, statistics are all that is wanted.
        With `cache`, what each forward adds to the cache is recorded.
        """
        self.model = model
        self.followed = model
        self.clock = TokenClock()
        self.inputs: RootInputs | None = None
        self.failure: Exception | None = None
        self.beams: BeamRows | None = None
        self._surplus = range(0)
        self.left_out = 0
        self._stopped = False
        self._modules = modules
        self._tokens = tokens
        self._last_logits = last_logits
        self._logits: torch.Tensor | None = None
        self._source = (ROOT, type(model).__name__)
        self._routed = routed_modules(model)
        self._device = device
        self._values = values
        self._trace: TraceRecorder | None = None
        self._makes_masks = False
        self._is_aside = False
        self._places: SavePlaces | None = None
        self._decisions: DecisionRecorder | None = None
        self._cache = CacheReader(model) if cache else None
        self._intake = new_intake()
        self._intake.inputs, self._intake.outputs = inputs, outputs
        self._intake.fail = self.fail
        self.snapshot = Snapshot(Arena(), _drop, self._intake, device=device)

    @property
    def tapped(self) -> int:
        """Number of tapped modules."""
        return len(self._modules)

    def attach(self, stack: ExitStack) -> None:
        """Hook the tapped modules; the handles are removed when `stack` is closed."""
        tap_modules(self._modules, self._intake, stack)
        announce_kernels(self.model, self._before_kernel, stack)

    def _before_kernel(self) -> None:
        if self.snapshot.tick is not None and not self._stopped:
            self._guarded(self.snapshot.pause)

    def open_run(self, run: int, dump: BatchSink) -> None:
        """Start recording into `dump`; `start_generation` or `start_forward` opens the clock."""
        self.failure = None
        self.left_out, self._stopped = 0, False
        self.inputs = None
        self._logits = None
        self._trace = None
        self._surplus = range(0)
        self._places = None
        self._decisions = None
        self._dump = dump
        self.snapshot = Snapshot(
            dump.arena,
            dump.write,
            self._intake,
            device=self._device,
            hurry=dump.hurry,
            behind=self._rank,
            describe_large=not self._values and _are_cores_taken(),
            routed=self._routed,
        )
        self.run = run

    def start_generation(
        self,
        eos: frozenset[int],
        *,
        makes_masks: bool = True,
        beams: int = 1,
        speculation: Speculation | None = None,
    ) -> None:
        """Record from now on: an encoder or vision tower runs before the first forward.

        `makes_masks` tells that masks of four axes are made by `generate()`, of one of two. With
        more than one of `beams` rows change places, and none of those in progress has ended.
        """
        self._follow(self.model, eos, makes_masks=makes_masks, beams=beams)
        self.clock.speculation = speculation
        if speculation is not None:
            self._decisions = DecisionRecorder(self._source, last_logits=self._last_logits)
        self._trace = TraceRecorder()
        self._intake.stamp += 1
        if 0 in self._tokens:
            self.snapshot.begin(self.clock.provisional())
            self._intake.recording = not self._last_logits

    def follow_part(
        self, part: torch.nn.Module, eos: frozenset[int], *, makes_masks: bool, beams: int
    ) -> None:
        """Count the forwards of a part, whose `generate()` runs in place of the model's.

        What was recorded before, of an encoder or vision tower, belongs to its first forward.
        """
        self._follow(part, eos, makes_masks=makes_masks, beams=beams)

    def _follow(
        self, module: torch.nn.Module, eos: frozenset[int], *, makes_masks: bool, beams: int
    ) -> None:
        self.followed = module
        self.beams = BeamRows(beams) if beams > 1 else None
        ends = frozenset() if self.beams else eos
        self.clock.open_run(self.run, generating=True, eos=ends)
        self._makes_masks, self._is_aside = makes_masks, False

    def start_forward(self) -> None:
        """Start a run that is one bare forward."""
        self.clock.open_run(self.run, generating=False)
        self._makes_masks = self._is_aside = False
        self.followed, self.beams = self.model, None

    def before_root(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the arguments of a forward of the root module."""
        if not self._stopped:
            self._guarded(lambda: self._begin_forward(args, kwargs))
        elif not self.clock.generating or self.clock.token in self._tokens:
            self.left_out += 1

    def _begin_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = named_arguments(self.followed, args, kwargs)
        clock, snapshot = self.clock, self.snapshot
        aside = self._is_aside = clock.generating and runs_aside()
        inputs = read_inputs(
            self.followed, args, given, seen=clock.columns(aside=aside), generated=self._generated()
        )
        self.inputs = self.inputs or inputs
        tick = clock.tick(inputs, aside=aside)
        if aside and self._last_logits and self._logits is not None:
            self._take_logits()  # those of the sequence, while its forward is open
        wanted = not self.clock.generating or self._is_wanted(tick)
        if tick.forward == 0 and snapshot.tick is not None:
            snapshot.settle(tick)
        else:
            snapshot.end()
            self._intake.stamp += 1
            if wanted:
                snapshot.begin(tick)
        self._intake.recording = wanted and not self._last_logits
        if self._trace is not None and not aside:
            self._trace.see_inputs(tick, inputs, given.get("use_cache"))
        if self._cache is not None and wanted:
            self._cache.before(given)

    def _is_wanted(self, tick: Tick) -> bool:
        """Tell whether a token that a forward may decide is asked for."""
        return any(tick.token + i in self._tokens for i in range(tick.drafted + 1))

    def begin_drafts(self, length: int) -> None:
        """Record nothing of the drafter, which may share modules; take the prompt's length."""
        self.clock.set_prompt(length)
        self._intake.recording = False

    def _generated(self) -> Generated:
        if not self._makes_masks:
            return Generated.NO
        return Generated.DECODE if self.clock.token else Generated.PROMPT

    def after_root(self, output: Any) -> None:
        """Take the output of a forward of the root module; None when it raised.

        By then the forward before it is on disk: a kill loses no more than one that has ended.
        """
        self._dump.flush(before=self.clock.forward)
        if self._decisions is not None:
            self._guarded(partial(self._see_verifying, self._decisions, output))
            return
        if self._trace is not None and not self._is_aside and not self._stopped:
            self._guarded(partial(self._trace.see_logits, _logits(output)))
        if self._cache is not None and self.snapshot.tick is not None and not self._stopped:
            self._guarded(partial(self._take_cache, self._cache, output))
        wants_logits = self._last_logits and not self._is_aside
        if wants_logits and self.snapshot.tick is not None and not self._stopped:
            logits = _logits(output)
            self._logits = None if logits is None else logits.detach()
            if not self.clock.generating:
                self._guarded(self._take_logits)

    def see_scores(self, ids: torch.Tensor, scores: torch.Tensor) -> None:
        """Take what the logits processor of the session sees."""
        if self._decisions is not None:
            if not self._stopped:
                self._guarded(partial(self._decisions.see_scores, self.snapshot, scores))
            return
        self.clock.set_prompt(ids.shape[1])
        if self.beams is not None and not self._stopped:
            self._guarded(partial(self._see_beams, self.beams, ids))
        if self._last_logits and self.snapshot.tick is not None and not self._stopped:
            self._guarded(self._take_logits)
            self._guarded(lambda: self._take("scores", scores))

    def see_token(self, ids: torch.Tensor) -> None:
        """Take the ids that the stopping criteria of the session sees; the forward is over."""
        if self.clock.forward < 0:
            self.fail(CaptureError(_NO_FORWARD))
        last = ids[:, -1]
        # With beams these are the candidates, and which of them become rows is seen a token later.
        chosen = last.tolist() if self.beams is None else []
        if self._decisions is not None:
            if not self._stopped:
                self._guarded(partial(self._see_verified, self._decisions, ids))
        elif not self._stopped:
            self._see_chosen(last, chosen)
        self.clock.advance(ids.shape[1], chosen)
        self._guarded(self.snapshot.end)
        self._intake.recording = False

    def _see_chosen(self, last: torch.Tensor, chosen: list[int]) -> None:
        if self._trace is not None and self.beams is None:
            self._guarded(partial(self._trace.see_token, self.clock.token, chosen))
        if self.snapshot.tick is None or self._stopped:
            return
        if self.beams is None:
            self._guarded(partial(self._take, "token_ids", last))
        else:
            self.snapshot.skip("token_ids of beams: the rows of the next token tell them")

    def _see_beams(self, beams: BeamRows, ids: torch.Tensor) -> None:
        parents = beams.see(ids)
        if self._trace is not None:
            self._trace.see_token(self.clock.token, [NO_ID] * len(parents), parents)

    def discard_surplus(self, result: Any, tokens: int | None) -> dict[str, Any]:
        """Leave out what `generate()` computed after its last token; return what run.json tells.

        Where it asks whether to stop a token late (MPS, transformers 5.23), it takes back the token
        and its forward; the records of the forward stay, under the index of that token.
        """
        if not is_stop_deferred(result) or self.beams is not None or tokens is None:
            return {}
        self._surplus = range(tokens, self.clock.token)
        return {"discarded_tokens": list(self._surplus)}

    # --- speculative decoding: several tokens of one row at once ---------------------------------

    def _see_verifying(self, decisions: DecisionRecorder, output: Any) -> None:
        """Take what a verifying forward returned: its last columns are one for each token."""
        if self._stopped or output is None:
            return
        logits = _logits(output)
        if self._trace is not None:
            self._trace.see_columns(logits, self.clock.drafted + 1)
        if self._cache is not None and self.snapshot.tick is not None:
            self._take_cache(self._cache, output)
        decisions.see_logits(self.snapshot, logits)

    def _see_verified(self, decisions: DecisionRecorder, ids: torch.Tensor) -> None:
        """Take the ids that end in the tokens which a verifying forward decided."""
        tick, accepted = self.clock.verify(ids.shape[1])
        if self._trace is not None:
            self._trace.see_tokens(tick, ids[0, -accepted - 1 :].tolist())
        decisions.see_tokens(self.snapshot, tick, ids, accepted)

    def stop(self) -> None:
        """Record nothing more in this run."""
        self._stopped = True
        self._intake.recording = False

    def save(self, name: str, tensor: torch.Tensor) -> bool:
        """Record a tensor of the user; False where the token in progress is not selected.

        Raises:
            CaptureError: between two tokens, when no forward is in progress.
        """
        tick, clock = self.snapshot.tick, self.clock
        if self._stopped:
            return False
        if tick is None:
            if clock.generating and clock.token not in self._tokens:
                return False
            msg = f"save({name!r}, ...) comes between two forwards; call it during one, or before "
            raise CaptureError(msg + "the token is chosen.")
        self._places = self._places or SavePlaces(self.model)
        source, number = self._places.place(name, tick.forward)
        call = (number, self.snapshot.call()[1])
        self._guarded(partial(self.snapshot.take, source, f"saved.{name}", "", call, tensor))
        return True

    def close_run(self) -> None:
        """End the forward in progress; the last batch leaves."""
        self._intake.recording = False
        self._logits = None
        self._guarded(self.snapshot.end)

    def take_trace(self) -> tuple[TokenTrace, ...]:
        """Return the tokens that were generated in the run, once its batches are written."""
        if self._trace is not None:
            try:
                found = self._trace.tokens()
                return tuple(t for t in found if t.token not in self._surplus)
            except Exception as error:  # whatever went wrong behind the forwards
                self.fail(error)
        return ()

    def _rank(self) -> None:
        """Rank the candidates of earlier tokens; called where batches are resolved."""
        if self._trace is not None:
            self._trace.rank_if_worth()

    def _take_cache(self, cache: CacheReader, output: Any) -> None:
        """Record what the forward that is over added to the cache."""
        tick = self.snapshot.tick
        if tick is None or output is None:  # a forward that raised
            return
        call = self.snapshot.call()
        for found in cache.after(output, tick.rows, tick.cols):
            if isinstance(found, str):
                self.snapshot.skip(found)
            else:
                self.snapshot.take_known(self._source, found.slot, found.axes, call, found.tensor)

    def _take_logits(self) -> None:
        logits, self._logits = self._logits, None
        if logits is not None:
            self._take("logits", self._last_column(logits))

    def _last_column(self, logits: torch.Tensor) -> torch.Tensor:
        """Return [rows, vocabulary] at the last unmasked column of each row."""
        if logits.ndim != 3:
            return logits
        if logits.shape[1] == 1:
            return logits[:, 0]
        tick = self.snapshot.tick
        positions = None if tick is None else tick.positions
        if positions is None or positions.shape != logits.shape[:2]:
            return logits[:, -1]
        last = positions.argmax(axis=1)  # positions grow along a row, and padding is -1
        if (last == logits.shape[1] - 1).all() or (positions[:, -1] >= 0).all():
            return logits[:, -1]
        rows = torch.arange(logits.shape[0], device=logits.device)
        return logits[rows, torch.as_tensor(last, device=logits.device)]

    def _take(self, slot: str, tensor: torch.Tensor) -> None:
        """Record a tensor of the root that no module tap sees, as a call of its own."""
        self.snapshot.take(self._source, slot, "", self.snapshot.call(), tensor)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever we did wrong, the model must go on
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End the recording of the run, and remember the first reason."""
        self.failure = self.failure or error
        self.stop()


def _are_cores_taken() -> bool:
    """Tell whether torch computes on every core, so that what a thread of ours does delays it."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return torch.get_num_threads() >= cores


def _logits(output: Any) -> torch.Tensor | None:
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple):  # return_dict=False: a loss may come first
        logits = next((v for v in output if isinstance(v, torch.Tensor) and v.ndim > 1), None)
    return logits if isinstance(logits, torch.Tensor) else None


def _drop(_batch: Batch) -> None:
    """Take the batches of no run."""
