"""A dump's runs once more, from what the dump says of them, and bit for bit against it."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any, cast

import pyarrow.compute as pc
import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from hf_dumper.capture.adapters import base_of
from hf_dumper.capture.generation import FollowTokens
from hf_dumper.capture.seeding import seeded
from hf_dumper.capture.speculation import ASSISTANT, OTHER_TOKENIZER
from hf_dumper.config import RAISE, DumpConfig
from hf_dumper.core.types import ROOT
from hf_dumper.diagnose.changes import Change, changes_of_manifest, changes_of_run
from hf_dumper.diagnose.same_records import RecordCheck, check_records
from hf_dumper.errors import DumpWarning, EmptyDumpError, PromptError
from hf_dumper.prompts.golden import GoldenRun, golden_run
from hf_dumper.session import DumpSession
from hf_dumper.store import NativeReader
from hf_dumper.store.layout import run_folder

EQUAL, DIFFERS, NOT_REPEATED = "equal", "differs", "not repeated"


@dataclass(frozen=True, slots=True)
class RunAgain:
    """What came of repeating one run.

    Attributes:
        run: Its number in the dump.
        why_not: Why it was not repeated, "" when it was.
        records: What came of its records, None when it was not repeated.
        tokens_equal: Whether the generated ids are the same.
        changed: What of its regime is not as it was.
    """

    run: int
    why_not: str = ""
    records: RecordCheck | None = None
    tokens_equal: bool = False
    changed: tuple[Change, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether every record was compared and has the same bytes, and the tokens are the same."""
        return self.records is not None and self.records.is_equal and self.tokens_equal

    @property
    def differs(self) -> bool:
        """Whether a record or the tokens were compared and are not the same."""
        return self.records is not None and not (self.tokens_equal and not self.records.difference)


@dataclass(frozen=True, slots=True)
class Rerun:
    """What came of repeating all runs; `changed` is what of model and machine is not as it was."""

    changed: tuple[Change, ...]
    runs: tuple[RunAgain, ...]

    @property
    def verdict(self) -> str:
        """EQUAL only when there are runs, all were repeated, and every record is the same."""
        if any(again.differs for again in self.runs):
            return DIFFERS
        return EQUAL if self.runs and all(a.is_equal for a in self.runs) else NOT_REPEATED

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"verdict": self.verdict, **asdict(self)}


def rerun(dump: Path, model: PreTrainedModel) -> Rerun:
    """Repeat every run of a dump with its prompts and options, and compare all records.

    The model is one like that of the dump; what of it is not as it was is told. Each run goes to a
    temporary folder that is gone afterwards, so disk space is needed for one run.
    """
    model = cast("PreTrainedModel", base_of(model))
    with (
        NativeReader(dump) as golden,
        TemporaryDirectory(prefix="hf_dumper_rerun_") as folder,
        _quiet(),
    ):
        if not golden.manifest["identity"].get("device_map"):
            _place(model, golden)
        config = _config(golden.manifest, Path(folder) / "dump")
        with _dumped(model, config) as session:
            with NativeReader(session.path) as candidate:
                changed = changes_of_manifest(golden.manifest, candidate.manifest)
            runs = tuple(_again(golden, run, model, session) for run in golden.runs())
    return Rerun(changed, runs)


def _config(manifest: Mapping[str, Any], path: Path) -> DumpConfig:
    identity = manifest["identity"]
    options = {**identity["dump_config"], "dump_path": path, "on_error": RAISE}
    return DumpConfig.from_dict({**options, "hash_weights": manifest.get("weights") is not None})


@contextmanager
def _dumped(model: PreTrainedModel, config: DumpConfig) -> Iterator[DumpSession]:
    """Dump the model while the block runs; that no run can be repeated is no error here."""
    try:
        with suppress(EmptyDumpError), DumpSession(model, config) as session:
            yield session
    finally:
        model.__dict__.pop("dump", None)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DumpWarning)  # what was told when the dump was made
        yield


def _again(
    golden: NativeReader, run: int, model: PreTrainedModel, session: DumpSession
) -> RunAgain:
    info = golden.run_info(run)
    try:
        wanted = golden_run(golden, run)
    except PromptError as error:
        return RunAgain(run, str(error))
    reason = _why_not(golden, info)
    if reason:
        return RunAgain(run, reason)
    try:
        with _as_it_was(model, info, seed=session.config.seed):
            _run(model, session, wanted, info, _positional(golden, run))
    except Exception as error:  # of a model that is not the dump's, or of a disk that is full
        return RunAgain(run, f"{type(error).__name__}: {error}")
    number = session.runs[-1]
    with NativeReader(session.path) as candidate:
        new = candidate.run_info(number)
        again = RunAgain(
            run,
            records=check_records(golden, run, candidate, number),
            tokens_equal=info.get("generated_ids") == new.get("generated_ids"),
            changed=(*changes_of_run(info, new), *_moved(golden, run, candidate, number)),
        )
    rmtree(run_folder(session.path, number))
    return again


def _positional(golden: NativeReader, run: int) -> list[str]:
    """Return the names of what the outermost module was given by position, in order."""
    table = golden.index(run)
    table = table.filter(pc.equal(table.column("module"), ROOT)).select(["slot", "param"])
    found = {
        int(row["slot"][6:]): row["param"] for row in table.to_pylist() if _is_nth(row["slot"])
    }
    return [found[place] for place in sorted(found)]


def _is_nth(slot: str) -> bool:
    return slot.startswith("input.") and slot[6:].isdecimal()


def _moved(golden: NativeReader, run: int, candidate: NativeReader, again: int) -> Iterator[Change]:
    then, now = _devices(golden, run), _devices(candidate, again)
    if then != now:
        yield Change("devices", ", ".join(then), ", ".join(now))


def _devices(reader: NativeReader, run: int) -> list[str]:
    devices = pc.unique(reader.index(run).column("device")).to_pylist()
    return sorted(device for device in devices if device)


def _place(model: PreTrainedModel, golden: NativeReader) -> None:
    """Move a model to the one accelerator that all of a dump was made on, if it is here."""
    runs = golden.runs()
    devices = {d for run in runs for d in _devices(golden, run)} - {"cpu"}
    kind = next(iter(devices), "").partition(":")[0]
    if len(devices) == 1 and kind and torch.get_device_module(kind).is_available():
        model.to(torch.device(devices.pop()))  # type: ignore[arg-type]


def _why_not(golden: NativeReader, info: Mapping[str, Any]) -> str:
    sampled = (info.get("generation_config") or {}).get("do_sample")
    seed = golden.manifest["identity"]["dump_config"].get("seed")
    if sampled and seed is None and info.get("followed") is None:
        return "it drew its tokens at random without a seed of the dump, so it cannot be repeated"
    drafter = (info.get("prompt") or {}).get("drafter")
    if drafter in (ASSISTANT, OTHER_TOKENIZER):
        return f"its tokens were drafted by an {drafter}, which the dump does not have"
    return ""


@contextmanager
def _as_it_was(
    model: PreTrainedModel, info: Mapping[str, Any], *, seed: int | None
) -> Iterator[None]:
    """Restore what can be of a run's regime while the block runs: threads, flags, modes.

    A session with a `seed` sets the flags itself.
    """
    regime, inputs = info.get("regime") or {}, info.get("inputs") or {}
    was_training, threads = model.training, torch.get_num_threads()
    with ExitStack() as stack:
        if isinstance(regime.get("threads"), int) and regime["threads"] > 0:
            stack.callback(torch.set_num_threads, threads)
            torch.set_num_threads(regime["threads"])
        if seed is None and regime.get("seed") is not None:
            stack.enter_context(seeded(regime["seed"]))
        stack.enter_context(torch.set_grad_enabled(bool(inputs.get("grad"))))
        stack.callback(model.train, was_training)
        model.train(bool(inputs.get("training")))
        yield


def _run(
    model: PreTrainedModel,
    session: DumpSession,
    wanted: GoldenRun,
    info: Mapping[str, Any],
    positional: Sequence[str],
) -> None:
    inputs = {name: tensor.to(model.device) for name, tensor in wanted.inputs.items()}
    if wanted.ids is None:
        args = [inputs.pop(name) for name in positional if name in inputs]
        model(*args, **inputs, **wanted.options)
        return
    before = model.generation_config
    # The recorded options are all there are: those of the checkpoint are among them already.
    model.generation_config = GenerationConfig(**(info.get("generation_config") or {}))
    given: dict[str, Any] = {}
    if info.get("followed") is not None:
        # The session's own comes first, so that the scores it records are those of this model.
        processors = [*session.logits_processor, FollowTokens(wanted.ids)]
        given["logits_processor"] = LogitsProcessorList(processors)
    try:
        cast("Any", model).generate(**inputs, **given)
    finally:
        model.generation_config = before
