"""Dumped weights against the hashes of the manifest."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from xxhash import xxh3_64

from hf_dumper.errors import DumpFormatError
from hf_dumper.store.findings import Findings
from hf_dumper.store.verify_shards import BLOCK, hash_of, opened, read_header

_NO_HASH: Final = "the manifest has no hash of dumped weights"


def check_weights(folder: Path, weights: Mapping[str, Any], findings: Findings) -> None:
    """Hash the tensors of every file in the folder; `weights` are those of the manifest."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with opened(file) as shard:
                size = os.fstat(shard.fileno()).st_size
                start, header = read_header(shard, size)
                header.pop("__metadata__", None)
                spans = {name: _span(entry, start) for name, entry in header.items()}
                found = {n: _digest(shard, span, size) for n, span in spans.items()}
        except DumpFormatError as error:
            findings.add(file, str(error))
            continue
        except OSError as error:
            findings.add(file, f"it cannot be read: {error.strerror or error}")
            continue
        findings.read(sum(end - begin for begin, end in spans.values()))
        _compare(file, found, weights, findings)
        last = max((end for _, end in spans.values()), default=start)
        if size != last:
            findings.add(file, f"it ends at byte {size}, and its tensors at {last}")


def _span(entry: Any, start: int) -> tuple[int, int]:
    try:
        begin, end = entry["data_offsets"]
        if 0 <= begin <= end:
            return start + begin, start + end
    except (KeyError, TypeError, ValueError):
        pass
    msg = "the header is damaged: an entry has no data_offsets"
    raise DumpFormatError(msg)


def _digest(shard: Any, span: tuple[int, int], size: int) -> str | None:
    """Return the hash of a tensor as the manifest writes it, None beyond the end of the file."""
    begin, end = span
    if end > size:
        return None
    buffer = memoryview(bytearray(min(BLOCK, max(1, end - begin))))
    return f"{hash_of(shard, begin, end - begin, buffer):0{2 * xxh3_64().digest_size}x}"


def _compare(
    file: Path, found: Mapping[str, str | None], weights: Mapping[str, Any], findings: Findings
) -> None:
    wanted = {name: (weights.get(name) or {}).get("hash") for name in found}
    unknown = sum(value is None for value in wanted.values())
    if unknown:
        findings.unchecked[_NO_HASH] += unknown
    wrong = [name for name in found if wanted[name] is not None and found[name] != wanted[name]]
    if wrong:
        findings.add(file, "its bytes do not have the hash of the manifest", wrong)
    findings.weights += len(found) - unknown - len(wrong)
