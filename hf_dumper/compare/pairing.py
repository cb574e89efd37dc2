"""Every record of two dumps: the pairs, and what is left alone."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from hf_dumper.compare.adapters import INSIDE, Adapted
from hf_dumper.compare.align import RunAligner
from hf_dumper.compare.asked import NOT_ASKED, Asked
from hf_dumper.compare.cut import Cut, depths
from hf_dumper.compare.pairs import Alone, Pair
from hf_dumper.compare.records import NameKey, Rec, RunRecords, Side, in_order
from hf_dumper.compare.rows import Match
from hf_dumper.core.verdicts import Verdict

_KEY: Final = ("forward", "module", "slot", "call", "op", "seq_in")


class Pairing:
    """Yields the pairs of two dumps lazily, in the golden order of completion.

    Once `pairs` is exhausted, `alone` holds the records that no pair covers, and `counts` the
    records of both sides and what became of them.
    """

    def __init__(self, golden: Side, candidate: Side, matches: Sequence[Match]) -> None:
        """Prepare; nothing is read yet."""
        self.alone: list[Alone] = []
        self.counts: Counter[str] = Counter()
        self._golden, self._candidate = golden, candidate
        self._matches = matches
        self._adapted = Adapted(golden.reader.manifest, candidate.reader.manifest)
        self._layers = depths(golden.reader.manifest, candidate.reader.manifest)
        self._used: dict[int, set[int]] = {}
        self._names: set[NameKey] = set()
        self._paired: set[NameKey] = set()

    def pairs(self) -> Iterator[Pair]:
        """Yield every golden record that has a partner."""
        runs = map(self._candidate.records, self._candidate.runs)
        modules = frozenset(record.module for records in runs for record in records.records)
        asked = Asked(self._candidate.reader.manifest, modules)
        for run in self._golden.runs:
            records = self._golden.records(run)
            aligner = self._aligner(run)
            cut = Cut(records, self._layers)
            for record in in_order(records.records):
                found = aligner.align(record)
                if self._adapted.holds(record.module):
                    found = Alone("golden", record, Verdict.UNMATCHED, INSIDE)
                elif cut.comes_after(record):
                    found = Alone("golden", record, Verdict.UNMATCHED, cut.reason)
                elif _is_unmatched(found) and not asked.covers(record):
                    found = Alone("golden", record, Verdict.UNMATCHED, NOT_ASKED)
                self._note(record, found)
                if isinstance(found, Pair):
                    yield found
        for run in self._candidate.runs:
            self._leftovers(run)

    def pair_of(self, row: Mapping[str, Any]) -> Pair | None:
        """Return the pair of a row of the results once more."""
        for record in self._golden.records(row["run"]).records:
            if all(getattr(record, name) == row[name] for name in _KEY):
                found = self._aligner(record.run).align(record)
                return found if isinstance(found, Pair) else None
        return None

    def _aligner(self, run: int) -> RunAligner:
        matches = [match for match in self._matches if match.golden.run == run]
        return RunAligner(self._golden.records(run), self._candidate, matches)

    def _note(self, record: Rec, found: Pair | Alone | None) -> None:
        self.counts["golden records"] += 1
        self._names |= _names(record)
        if found is None:
            self.counts["golden records of padding"] += 1
        elif isinstance(found, Alone):
            self._leave(found)
        else:
            self.counts["pairs"] += 1
            self.counts["positions truncated"] += found.truncated
            self.counts["positions missing"] += found.missing
            if not record.slot.startswith("input"):
                self.counts["positions missing in outputs"] += found.missing
            for partner in (found.candidate, *(piece.candidate for piece in found.pieces)):
                self._used.setdefault(partner.run, set()).add(partner.number)
                self._paired |= _names(partner)

    def _leave(self, alone: Alone) -> None:
        self.alone.append(alone)
        self.counts[f"{alone.side} records {alone.verdict}"] += 1

    def _leftovers(self, run: int) -> None:
        """Say of every record of a candidate's run that was not used why it was not."""
        records = self._candidate.records(run)
        used = self._used.get(run, set())
        fates = _Fates(records, [m for m in self._matches if m.candidate.run == run], used)
        for record in records.records:
            self.counts["candidate records"] += 1
            if record.number in used:
                continue
            fate = fates.of(record.forward)
            if fate == "padding":
                self.counts["candidate records of padding"] += 1
            elif fate == "repeated" and record.name in self._paired:
                self.counts["candidate records repeated"] += 1
            elif fate == "truncated":
                self._leave(Alone("candidate", record, Verdict.TRUNCATED, fates.cut))
            else:
                self._leave(Alone("candidate", record, Verdict.UNMATCHED, self._why(record, fate)))

    def _why(self, record: Rec, fate: str) -> str:
        if fate == "no row":
            return "the golden dump has no row of these prompts"
        if self._adapted.holds(record.module):
            return INSIDE
        if _names(record) & self._names:
            return "the golden dump has no values at these positions"
        return "the golden dump has no such record"


class _Fates:
    """What became of the forwards of a candidate's run whose records were not used."""

    def __init__(self, records: RunRecords, matches: Sequence[Match], used: set[int]) -> None:
        """Look at which positions the forwards hold that were used."""
        self.cut = next((m.reason for m in matches if m.reason), "")
        self._layouts = records.layouts
        self._matches = matches
        forwards = {r.forward for r in records.records if r.number in used}
        self._compared = [
            {p for f in forwards for p in self._positions(f, match)} for match in matches
        ]

    def of(self, forward: int) -> str:
        """Return one word or two: the first that holds for all rows of a forward."""
        if not self._matches:
            return "no row"
        if forward not in self._layouts:
            return ""
        held = [self._positions(forward, match) for match in self._matches]
        if not any(held):
            return "no row" if self._matches[0].candidate.at is not None else "padding"
        ends = [match.end for match in self._matches]
        if all(p >= end for end, found in zip(ends, held, strict=True) for p in found):
            return "truncated"
        if all(p in done for done, found in zip(self._compared, held, strict=True) for p in found):
            return "repeated"  # a forward without cache holds every position again
        return ""

    def _positions(self, forward: int, match: Match) -> list[int]:
        layout = self._layouts.get(forward)
        row = None if layout is None else match.candidate.place(forward, layout.rows)
        if layout is None or row is None:
            return []
        positions: list[int] = layout.positions[row].tolist()
        return [p for p in positions if p >= 0]


def _is_unmatched(found: Pair | Alone | None) -> bool:
    return isinstance(found, Alone) and found.verdict == Verdict.UNMATCHED


def _names(record: Rec) -> set[NameKey]:
    return {record.name} | ({record.param_name} if record.param_name else set())
