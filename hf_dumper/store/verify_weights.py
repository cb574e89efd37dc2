"""Dumped weights against their index, and that against the hashes of the manifest."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from hf_dumper.core.digests import DIGEST, is_sealed
from hf_dumper.errors import DumpError, DumpFormatError
from hf_dumper.store.files import read_json
from hf_dumper.store.findings import Findings
from hf_dumper.store.mapping import PLAIN_NAME
from hf_dumper.store.verify_shards import Own, ShardCheck
from hf_dumper.store.weights import INDEX

_SAME: Final = ("dtype", "shape", "hash")
"""What the manifest says of a weight, too."""


def check_weights(folder: Path, weights: Mapping[str, Any], findings: Findings) -> None:
    """Hash the tensors of every file that the index names; `weights` are those of the manifest."""
    file = folder / INDEX
    try:
        facts = read_json(file)
        shards = _shards(facts)
    except DumpError as error:
        findings.add(file, str(error))
        return
    if DIGEST not in facts:
        findings.unchecked["the index of the weights has no digest"] += 1
    elif not is_sealed(facts):
        findings.add(file, "it does not have the digest that it carries")
    others = list(_others(facts["tensors"], weights))
    if others:
        findings.add(file, "the manifest has another type, shape or hash of it", others)
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in shards:
            findings.add(path, "it is a stray: the index does not name it")
    names = [(row.tensor, shard) for shard, own in shards.items() for row in own]
    index = pa.table({"tensor": [n for n, _ in names], "shard": [shard for _, shard in names]})
    for shard, own in shards.items():
        findings.weights += len(ShardCheck(folder / shard, own, index, findings, True).run())


def _shards(facts: Mapping[str, Any]) -> dict[str, list[Own]]:
    """Return what each file must hold, in order.

    Raises:
        DumpFormatError: the index does not say it.
    """
    shards: dict[str, list[Own]] = {}
    try:
        for name, entry in facts["tensors"].items():
            shards.setdefault(_plain(entry["shard"]), []).append(_own(name, entry))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        msg = f"it is no index of weights: {type(error).__name__}: {error}"
        raise DumpFormatError(msg) from error
    return {shard: sorted(own, key=lambda row: row.offset) for shard, own in shards.items()}


def _plain(shard: str) -> str:
    if not PLAIN_NAME.fullmatch(shard):
        raise ValueError(shard)
    return shard


def _own(name: str, entry: Mapping[str, Any]) -> Own:
    offset, nbytes, *shape = (int(n) for n in (entry["offset"], entry["nbytes"], *entry["shape"]))
    if min(offset, nbytes) < 0:
        raise ValueError(name)
    return Own(name, offset, nbytes, int(entry["hash"], 16), str(entry["dtype"]), shape)


def _others(tensors: Mapping[str, Any], weights: Mapping[str, Any]) -> Iterator[str]:
    """Yield the weights of which the manifest says something else; it need not have a hash."""
    for name, entry in tensors.items():
        known = weights.get(name) or {}
        if any(known.get(what) not in (None, entry[what]) for what in _SAME):
            yield name
