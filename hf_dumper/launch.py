"""The processes of one `accelerate launch`: who is who, and what they tell each other.

They meet a few times only: before the first row, so that all start or none does, and after the
last. In between nobody waits for anybody.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from hf_dumper.errors import LaunchError

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch.distributed import Store

T = TypeVar("T")

_PATIENCE: Final = timedelta(days=30)
"""How long a process waits for the others: they may have many more tokens to generate. One that
ends without a word breaks its connections, which is noticed at once."""

_RANKS: Final = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_SIZES: Final = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_USE_CPU: Final = "ACCELERATE_USE_CPU"


@dataclass(frozen=True, slots=True)
class Launch:
    """One process among those of a launch.

    Attributes:
        rank: Number of this process, over all machines.
        size: How many there are.
        device: Where this process is to run its model, such as "cuda:3"; None to let it be.
        store: Where each process notes how far it is, None if there is no such place.
    """

    rank: int = 0
    size: int = 1
    device: str | None = None
    store: "Store | None" = field(default=None, repr=False, compare=False)

    @classmethod
    def of_environment(cls) -> "Launch":
        """Return this process as `accelerate launch` or `torchrun` started it, or else alone."""
        if not _is_launched():
            return cls()
        store = _join_group()
        state = _state()
        device = None if state.device.type == "cpu" else str(state.device)
        return cls(state.process_index, state.num_processes, device, store)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prepares the dump, and prints."""
        return self.rank == 0

    def share_of(self, rows: Iterable[T]) -> Iterator[T]:
        """Yield every `size`-th row, from the `rank`-th on; all must be given the same rows.

        A contiguous split would have to know how many there are, which a stream does not tell.
        """
        return islice(rows, self.rank, None, self.size)

    def report(self, done: float, total: int | None) -> None:
        """Note how far this process is, without waiting for anybody; None where nobody knows."""
        if self.store is not None:
            self.store.set(f"progress/{self.rank}", json.dumps([done, total]))

    def reported(self) -> tuple[float, int | None]:
        """Return how far all processes are together, by what they noted last."""
        notes = [self._noted(rank) for rank in range(self.size)]
        totals = [total for _, total in notes if total is not None]
        return sum(done for done, _ in notes), sum(totals) if len(totals) == self.size else None

    def _noted(self, rank: int) -> tuple[float, int | None]:
        key = f"progress/{rank}"
        if self.store is None or not self.store.check([key]):
            return 0, None
        done, total = json.loads(self.store.get(key))
        return done, total

    def exchange(self, value: T) -> list[T]:
        """Return what every process passed, by rank, as soon as all did.

        Raises:
            LaunchError: another process failed in a block that all are in `together`.
        """
        notes = self._gather(_Note(value))
        failures = {rank: note.failure for rank, note in enumerate(notes) if note.failure}
        if failures:
            raise LaunchError(_told(failures))
        return [note.value for note in notes]

    def of_main(self, make: Callable[[], T]) -> T:
        """Return what `make` returns in the main process, where alone it is called."""
        return self.exchange(make() if self.is_main else None)[0]  # type: ignore[return-value]

    def agree(self, what: str, value: object) -> None:
        """Make sure that every process passes the same value.

        Raises:
            LaunchError: one passes another than the main process.
        """
        values = self.exchange(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                msg = f"The processes differ in {what}: process 0 has {values[0]}, {rank} {other}."
                raise LaunchError(msg)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let the block succeed in every process, or fail in every one.

        The main process raises its own error, with a note of what went wrong elsewhere; all others,
        and the main one if it has none itself, raise a LaunchError that tells all of it.
        """
        try:
            yield
            self.exchange(None)
        except LaunchError:
            raise
        except Exception as error:
            failures = self._fail(str(error) or repr(error))
            if self.size > 1 and not self.is_main:
                raise LaunchError(_told(failures)) from error
            others = {r: text for r, text in failures.items() if text != failures[self.rank]}
            if others:
                error.add_note(_told(others))
            raise

    def _fail(self, failure: str) -> dict[int, str]:
        notes = self._gather(_Note(None, failure))
        return {rank: note.failure for rank, note in enumerate(notes) if note.failure}

    def _gather(self, note: "_Note") -> "list[_Note]":
        if self.size == 1:
            return [note]
        import torch.distributed

        notes: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(notes, note)
        return notes


@dataclass(frozen=True, slots=True)
class _Note:
    """What one process tells the others; there is one kind, so that they cannot miss each other."""

    value: Any
    failure: str | None = None


def is_main_process() -> bool:
    """Tell from the environment alone whether this process is the one that prints."""
    return int(next((os.environ[name] for name in _RANKS if name in os.environ), 0)) == 0


def _is_launched() -> bool:
    return _USE_CPU in os.environ or _size() > 1


def _join_group() -> "Store | None":
    """Connect the processes, and return what they have in common; None under MPI.

    By gloo, whatever the accelerator: what is told is small, and several processes may share one.
    """
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if "RANK" not in os.environ or dist.is_initialized():
        return None
    store, rank, size = next(rendezvous("env://"))
    group = dist.PrefixStore("group", store)
    dist.init_process_group("gloo", timeout=_PATIENCE, store=group, rank=rank, world_size=size)
    return dist.PrefixStore("hf_dumper", store)


def _state() -> "PartialState":
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    cpu = parse_flag_from_env(_USE_CPU) or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=_PATIENCE)


def _told(failures: dict[int, str]) -> str:
    """Return a line for the errors, each with the processes that it happened in."""
    ranks: dict[str, list[str]] = {}
    for rank, text in failures.items():
        ranks.setdefault(text, []).append(str(rank))
    return "; ".join(f"process {', '.join(where)}: {text}" for text, where in ranks.items())


def _size() -> int:
    return int(next((os.environ[name] for name in _SIZES if name in os.environ), 1))
