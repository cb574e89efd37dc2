"""Every file of a dump against what the dump says of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from hf_dumper.core.digests import json_digest
from hf_dumper.errors import DumpError, DumpFormatError
from hf_dumper.hub.names import is_hub_url
from hf_dumper.store import layout
from hf_dumper.store.files import read_json
from hf_dumper.store.findings import Findings, OnProgress, Verification
from hf_dumper.store.manifest import is_dump, read_manifest
from hf_dumper.store.open import open_dump
from hf_dumper.store.verify_run import check_run
from hf_dumper.store.verify_weights import check_weights
from hf_dumper.store.weights import WEIGHTS


class _Said(NamedTuple):
    """What a manifest says of the DumpConfig, and of each weight."""

    options: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, Any]]


_HASHES: Final = {"config_hash": "config", "weights_hash": "weights"}
"""Hashes in the identity, and what in the manifest they are of."""

_NO_MANIFEST: Final = _Said({}, {})


def verify_dump(path: Path, *, on_progress: OnProgress | None = None) -> Verification:
    """Hash the bytes of every record, and hold all files of a dump against each other.

    A run that was cut off is verified up to its last whole forward. Shards are read block by block,
    so the memory needed does not grow with them.

    Raises:
        DumpNotFoundError: there is nothing at `path`.
        DumpFormatError: it is no dump in the native layout, or one of an unknown version.
    """
    check_native(path)
    shards = (*path.glob("runs/*/rank-*/shard-*"), *path.glob("weights/*.safetensors"))
    total = sum(shard.stat().st_size for shard in shards if shard.is_file())
    findings = Findings(path, on_progress, total)
    said = _check_manifest(path, findings)
    _check_tree(path / layout.MODEL_TREE, findings)
    if (path / WEIGHTS).exists() or said.options.get("dump_weight"):
        check_weights(path / WEIGHTS, said.weights, findings)
    runs = _runs(path)
    for run in runs:
        check_run(path, run, findings)
    return findings.result(runs)


def check_native(path: Path) -> None:
    """Make sure that a dump is of the kind that has hashes.

    Raises:
        DumpNotFoundError: there is nothing at `path`.
        DumpFormatError: it is no dump in the native layout.
    """
    if is_dump(path):
        return
    if is_hub_url(str(path)):
        msg = (
            "Only files here can be verified: fetch them with hf-dumper download --local-dir first."
        )
        raise DumpFormatError(msg)
    with open_dump(path) as reader:
        kind = type(reader).__name__
        msg = f"'{path}' is no dump in the native layout ({kind}): only those can be verified."
        raise DumpFormatError(msg)


def _runs(path: Path) -> list[int]:
    folder = path / layout.RUNS
    if not folder.is_dir():
        return []
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdecimal())


def _check_manifest(path: Path, findings: Findings) -> _Said:
    """Check what the manifest says of itself; return what is needed of it.

    Raises:
        DumpFormatError: it is of a version that this release does not know.
    """
    file = path / layout.MANIFEST
    try:
        read_json(file)
    except DumpError as error:
        findings.add(file, str(error))
        return _NO_MANIFEST
    manifest = read_manifest(path)
    if manifest.get("kind") != layout.KIND:
        findings.add(file, f"its kind is {manifest.get('kind')!r}, not {layout.KIND!r}")
    identity = manifest.get("identity")
    if not isinstance(identity, dict):
        findings.add(file, "it has no identity")
        return _NO_MANIFEST
    for name, what in _wrong_hashes(manifest, identity):
        findings.add(file, f"its {what} does not have its {name}")
    config, weights = identity.get("dump_config") or {}, manifest.get("weights") or {}
    if not isinstance(config, dict) or not _is_nested(weights):
        findings.add(file, "its dump_config or its weights are no objects")
        return _NO_MANIFEST
    return _Said(config, weights)


def _is_nested(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(inner, dict) for inner in value.values())


def _wrong_hashes(
    manifest: Mapping[str, Any], identity: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    for name, what in _HASHES.items():
        value, wanted = manifest.get(what), identity.get(name)
        found = None if value is None else json_digest(value)
        if found != wanted:
            yield name, what


def _check_tree(file: Path, findings: Findings) -> None:
    try:
        tree = read_json(file)
    except DumpError as error:
        findings.add(file, str(error))
        return
    if not _is_tree(tree):
        findings.add(file, 'it is no tree of {"name", "type", "children"}')


def _is_tree(tree: object) -> bool:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict) or not {"name", "type", "children"} <= node.keys():
            return False
        if not isinstance(node["children"], list):
            return False
        waiting += node["children"]
    return True
