"""What a verification of a dump finds."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OnProgress = Callable[[int, int], None]
"""Is told how many bytes of shards were read, and how many there are."""

INTACT, DAMAGED, INCOMPLETE, UNCHECKED = "intact", "damaged", "incomplete", "unchecked"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with one file.

    `file` is its path inside the dump. `tensors` are the names, as in the shard, of all tensors
    that it is about; empty when it is about the file as a whole.
    """

    file: str
    what: str
    tensors: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line: file, the first tensor and how many more, what is wrong."""
        if not self.tensors:
            return f"{self.file}: {self.what}"
        more = f" and {len(self.tensors) - 1} more" if len(self.tensors) > 1 else ""
        return f"{self.file}: {self.tensors[0]!r}{more}: {self.what}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What became of looking at every file of a dump.

    Attributes:
        path: Folder of the dump.
        runs: Numbers of its runs.
        records: Rows of all indexes.
        hashed: Records whose bytes were read and have the hash that the index has, aliases too.
        bytes: Bytes of tensors that were read.
        weights: Dumped weights whose bytes have the hash of their index.
        skipped: Records that were not captured in the first place, which the index says.
        unchecked: Why records could not be checked -> how many; theirs are no bytes to hash.
        incomplete: Run -> why it is not whole.
        problems: What is damaged or missing.
    """

    path: Path
    runs: tuple[int, ...]
    records: int
    hashed: int
    bytes: int
    skipped: int
    weights: int
    unchecked: Mapping[str, int]
    incomplete: Mapping[int, str]
    problems: tuple[Problem, ...]

    @property
    def verdict(self) -> str:
        """INTACT only when every record was checked, and every run is whole."""
        if self.problems:
            return DAMAGED
        if self.incomplete:
            return INCOMPLETE
        return UNCHECKED if self.unchecked or not self.records else INTACT

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "path": str(self.path),
            "verdict": self.verdict,
            "runs": list(self.runs),
            "records": self.records,
            "hashed": self.hashed,
            "bytes": self.bytes,
            "skipped": self.skipped,
            "weights": self.weights,
            "unchecked": dict(self.unchecked),
            "incomplete": {str(run): why for run, why in self.incomplete.items()},
            "problems": [
                {"file": p.file, "what": p.what, "tensors": list(p.tensors)} for p in self.problems
            ],
        }


@dataclass(slots=True)
class Findings:
    """Gathers what is found while a dump is looked through; `path` is its folder."""

    path: Path
    on_progress: OnProgress | None = None
    total_bytes: int = 0
    records: int = 0
    hashed: int = 0
    bytes: int = 0
    skipped: int = 0
    weights: int = 0
    unchecked: Counter[str] = field(default_factory=Counter)
    incomplete: dict[int, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, file: Path, what: str, tensors: Sequence[str] = ()) -> None:
        """Add what is wrong with a file; a message that begins with its path loses that."""
        told = what.removeprefix(f"{file} ")
        self.problems.append(
            Problem(file.relative_to(self.path).as_posix(), told.rstrip("."), tuple(tensors))
        )

    def read(self, nbytes: int) -> None:
        """Count bytes of a shard that were read."""
        self.bytes += nbytes
        if self.on_progress is not None:
            self.on_progress(self.bytes, self.total_bytes)

    def result(self, runs: Sequence[int]) -> Verification:
        """Return all of it."""
        return Verification(
            self.path,
            tuple(runs),
            self.records,
            self.hashed,
            self.bytes,
            self.skipped,
            self.weights,
            dict(self.unchecked),
            dict(self.incomplete),
            tuple(self.problems),
        )
