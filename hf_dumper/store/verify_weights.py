"""Dumped weights against their index, and their index against the manifest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from hf_dumper.core.types import STORED
from hf_dumper.errors import DumpError
from hf_dumper.store.files import read_json
from hf_dumper.store.findings import Findings
from hf_dumper.store.verify_shards import check_shards
from hf_dumper.store.weights import INDEX

_SCHEMA: Final = pa.schema(
    [
        ("tensor", pa.utf8()),
        ("shard", pa.utf8()),
        ("offset", pa.int64()),
        ("nbytes", pa.int64()),
        ("hash", pa.uint64()),
        ("dtype", pa.utf8()),
        ("shape", pa.list_(pa.int64())),
        ("status", pa.utf8()),
    ]
)


def check_weights(folder: Path, manifest: Mapping[str, Any], findings: Findings) -> None:
    """Hash every tensor that the index of the weights names.

    The manifest knows the tensors of the state dict only, and not those that were offloaded; where
    it has a hash, it must be that of the index.
    """
    identity = manifest.get("identity")
    options = identity.get("dump_config") if isinstance(identity, dict) else None
    if not folder.exists():
        if isinstance(options, dict) and options.get("dump_weight"):
            findings.add(folder, "it is missing, and the dump was to hold weights")
        return
    file = folder / INDEX
    try:
        tensors: Mapping[str, Mapping[str, Any]] = read_json(file)["tensors"]
        table = pa.Table.from_pylist([_row(n, w) for n, w in tensors.items()], _SCHEMA)
    except DumpError as error:
        findings.add(file, str(error))
        return
    except (AttributeError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        findings.add(file, f"it is damaged: {error!r}")
        return
    findings.weights += check_shards(folder, table, findings, committed=True)
    known = manifest.get("weights") or {}
    hashes = {n: known[n].get("hash") or w["hash"] for n, w in tensors.items() if n in known}
    differ = [name for name, digest in hashes.items() if digest != tensors[name]["hash"]]
    if differ:
        findings.add(file, "it does not have the hash of the manifest", differ)


def _row(name: str, weight: Mapping[str, Any]) -> dict[str, Any]:
    columns = ("shard", "offset", "nbytes", "dtype", "shape")
    own = {column: weight[column] for column in columns}
    return own | {"tensor": name, "hash": int(weight["hash"], 16), "status": STORED}
