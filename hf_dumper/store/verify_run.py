"""One run of a dump: its facts, its tables and its shards against each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from hf_dumper.core.digests import DIGEST, is_sealed
from hf_dumper.core.types import ALIASED, SKIPPED, STORED
from hf_dumper.core.verified import verified_forwards
from hf_dumper.errors import DumpError, DumpFormatError, DumpNotFoundError
from hf_dumper.store import layout
from hf_dumper.store.files import file_digest, read_json
from hf_dumper.store.findings import Findings
from hf_dumper.store.tables import read_parquet, read_stream
from hf_dumper.store.trace import TRACE
from hf_dumper.store.verified import columns_of_forwards
from hf_dumper.store.verify_rows import check_positions, check_rows
from hf_dumper.store.verify_shards import check_shards

_STATUSES: Final = (STORED, ALIASED, SKIPPED)
_NO_VALUES: Final = "only statistics were kept, no values"


def check_run(dump: Path, run: int, findings: Findings) -> None:
    """Check one run; what is wrong with it, or with its files, is added to the findings."""
    folder = layout.run_folder(dump, run)
    info, committed = _facts(folder, run, findings)
    ranks = [path for path in sorted(folder.glob("rank-*")) if path.name[5:].isdecimal()]
    if committed and not ranks:
        findings.add(folder, "it has no folder rank-0 with its records")
    if info is not None:
        _check_tables(folder, info, findings)
    tables = [_check_rank(rank, run, findings, committed=committed) for rank in ranks]
    if not committed or info is None:
        return
    if len(tables) > 1:
        findings.unchecked[f"run {run} has several ranks, whose counts are not in run.json"] += 1
        return
    for index, positions in tables:
        if index is not None and positions is not None:
            _check_sums(folder / layout.RUN, info, index, positions, findings)
            _check_rejected(folder / layout.RUN, info, positions, findings)


def _facts(folder: Path, run: int, findings: Findings) -> tuple[dict[str, Any] | None, bool]:
    """Return run.json, None if it cannot be read, and whether the run was committed."""
    file = folder / layout.RUN
    try:
        info = read_json(file)
    except DumpNotFoundError:
        findings.incomplete[run] = "it was cut off before its end"
        return None, False
    except DumpError as error:
        findings.add(file, str(error))
        return None, True
    if DIGEST not in info:
        findings.unchecked["run.json has no digest"] += 1
    elif not is_sealed(info):
        findings.add(file, "its facts do not have the digest that it carries")
    if info.get("run") != run:
        findings.add(file, f"it is that of run {info.get('run')!r}")
    if info.get("complete") is not True:
        findings.incomplete[run] = str(info.get("incomplete") or "no reason is recorded")
    return info, True


def _check_tables(folder: Path, info: Mapping[str, Any], findings: Findings) -> None:
    """Hash the tables; that those of the ranks exist and can be read is checked elsewhere."""
    hashes = info.get("tables")
    if not isinstance(hashes, dict):
        findings.unchecked["run.json has no hashes of the tables"] += 1
        return
    trace = folder / TRACE
    if TRACE in hashes and not trace.is_file():
        findings.add(trace, "it is missing")
    for file in sorted({*folder.glob("rank-*/*.parquet"), *folder.glob(TRACE)}):
        name = file.relative_to(folder).as_posix()
        if name not in hashes:
            findings.add(file, "it is a stray: run.json does not name it")
        elif file.is_file() and file_digest(file) != hashes[name]:
            findings.add(file, "its bytes do not have the hash of run.json")


def _check_rank(
    folder: Path, run: int, findings: Findings, *, committed: bool
) -> tuple[pa.Table | None, pa.Table | None]:
    """Check what one process wrote; return its index and its positions, None if unreadable."""
    index = _table(folder / layout.INDEX, layout.INDEX_SCHEMA, findings, committed=committed)
    positions = _table(
        folder / layout.POSITIONS, layout.POSITIONS_SCHEMA, findings, committed=committed
    )
    if index is not None:
        file = _file(folder / layout.INDEX, committed=committed)
        findings.records += index.num_rows
        _count_unhashed(index, findings)
        check_rows(file, index, (run, int(folder.name[5:])), findings)
        check_shards(folder, index, findings, committed=committed)
    if positions is not None:
        file = _file(folder / layout.POSITIONS, committed=committed)
        check_positions(file, positions, index, findings)
    return index, positions


def _file(stem: Path, *, committed: bool) -> Path:
    """Return the table's file; a kill during the commit leaves some with their final name."""
    done = stem.with_suffix(".parquet")
    return done if committed or done.exists() else stem.with_suffix(".partial")


def _table(
    stem: Path, schema: pa.Schema, findings: Findings, *, committed: bool
) -> pa.Table | None:
    file = _file(stem, committed=committed)
    try:
        if file.suffix == ".parquet":
            return read_parquet(file, schema)
        return read_stream(file, schema)
    except FileNotFoundError:
        if committed:
            findings.add(file, "it is missing")
    except DumpError as error:
        findings.add(file, str(error))
    return None


def _count_unhashed(index: pa.Table, findings: Findings) -> None:
    """Count the records without bytes to hash: those that were skipped, and those described."""
    skipped = pc.equal(index.column("status"), SKIPPED)
    findings.skipped += pc.sum(skipped).as_py() or 0
    valueless = pc.and_(pc.invert(skipped), pc.is_null(index.column("shard")))
    count = pc.sum(valueless).as_py() or 0
    if count:
        findings.unchecked[_NO_VALUES] += count


def _check_sums(
    file: Path, info: Mapping[str, Any], index: pa.Table, positions: pa.Table, findings: Findings
) -> None:
    """Check the counts in run.json against the tables."""
    status = index.column("status").to_pylist()
    found = {name: status.count(name) for name in _STATUSES}
    _check_count(file, "records", info.get("records"), found, findings)
    if info.get("complete") is True:
        counts = info.get("counts")
        if not isinstance(counts, dict):
            findings.add(file, "it has no counts")
            return
        counted = {name: counts[name] for name in _STATUSES if name in counts}
        _check_count(file, "counts", counted, {name: found[name] for name in counted}, findings)
    own = pc.and_(pc.equal(index.column("status"), STORED), pc.is_valid(index.column("shard")))
    nbytes = pc.sum(index.filter(own).column("nbytes")).as_py() or 0
    _check_count(file, "bytes", info.get("bytes"), nbytes, findings)
    indexed, placed = _distinct(index, "forward"), _distinct(positions, "forward")
    # A forward without columns and without records leaves no row anywhere; where positions are
    # known there is no such forward.
    least = len(indexed | placed)
    _check_at_least(file, "forwards", info.get("forwards"), least, bool(placed), findings)
    silent = bool(placed - indexed) or not placed
    tokens = len(_distinct(index, "token"))
    _check_at_least(file, "tokens", info.get("tokens"), tokens, not silent, findings)


def _check_rejected(
    file: Path, info: Mapping[str, Any], positions: pa.Table, findings: Findings
) -> None:
    """Check the drafts that each forward rejected against its positions below -1."""
    try:
        listed = verified_forwards(info, {}, {}) or ()
    except DumpFormatError as error:
        findings.add(file, str(error))
        return
    said = {verified.forward: verified.rejected for verified in listed}
    match (info.get("speculation") or {}).get("undecided"):
        case [int(forward), int(), int(drafted)]:  # of which none was accepted
            said[forward] = drafted
    for forward, (_, found) in columns_of_forwards(positions).items():
        if said.get(forward, 0) != found:
            what = f"{found} positions below -1, and {said.get(forward, 0)} rejected drafts"
            findings.add(file, f"forward {forward} has {what}")


def _check_count(file: Path, name: str, said: object, found: object, findings: Findings) -> None:
    if said != found:
        findings.add(file, f"its {name!r} says {said!r}, and the index has {found!r}")


def _check_at_least(
    file: Path, name: str, said: object, found: int, exactly: bool, findings: Findings
) -> None:
    is_right = isinstance(said, int) and (said == found if exactly else said >= found)
    if not is_right:
        findings.add(file, f"its {name!r} says {said!r}, and the tables have {found!r}")


def _distinct(table: pa.Table, name: str) -> set[int]:
    return set(pc.unique(table.column(name)).to_pylist())
