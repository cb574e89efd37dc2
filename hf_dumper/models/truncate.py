"""A checkpoint with the first layers of another, written without loading either."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hf_dumper.errors import ConfigError, ModelError
from hf_dumper.models.files import ModelFiles, is_safe, read_json
from hf_dumper.models.headers import data_start
from hf_dumper.models.layers import check_settled, cut_config, settled
from hf_dumper.models.roles import file_roles
from hf_dumper.models.stacks import Narrowed, is_beyond, narrowed, shortened, targets
from hf_dumper.models.streaming import (
    Source,
    beginning,
    from_bin,
    from_safetensors,
    write_safetensors,
)
from hf_dumper.models.weights import WeightFiles, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Empty = Callable[[str], PreTrainedModel]

_LEFT: Final = ("weights", "weight index", "other weights", "config")
"""Roles of files that are not copied as they are."""

_SOURCES: Final = {"safetensors": from_safetensors, "bin": from_bin}


@dataclass(frozen=True, slots=True)
class Truncated:
    """What was written.

    Attributes:
        path: The new folder.
        changes: What was changed in config.json, one line each.
        stacks: Lists of layers and how many are kept.
        kept: Number of tensors in the new checkpoint.
        left_out: Number of those that are not.
        bytes: Bytes of the tensors.
        shards: Files of weights.
        not_copied: Files with weights in another format, which would not fit any more.
    """

    path: Path
    changes: tuple[str, ...]
    stacks: Mapping[str, int]
    kept: int
    left_out: int
    bytes: int
    shards: tuple[str, ...]
    not_copied: tuple[str, ...]


def truncate(files: ModelFiles, out: Path, layers: int, empty: "Empty") -> Truncated:
    """Write the first layers of a model as a checkpoint of its own.

    Tensors are copied byte by byte, a piece at a time; of the hub only the shards that hold any of
    them are downloaded. Weights of .bin files are written as safetensors.

    Args:
        files: The model.
        out: A folder that is not there yet, or is empty. It appears when all of it is written.
        layers: How many layers to keep of each stack.
        empty: Returns a model on the meta device for a folder or a repository.

    Raises:
        ConfigError: fewer than one layer, or `out` holds something.
        ModelError: the model cannot be cut, or its files are damaged.
    """
    if layers < 1:
        msg = f"A model needs at least one layer, not {layers}."
        raise ConfigError(msg)
    with _appearing(out) as folder:
        whole = empty(files.name)
        weights = weight_files(files)
        not_copied = _copy_others(files, weights, folder)
        config = read_json(files, "config.json")
        changed, changes = cut_config(config, layers, whole.config.to_dict())
        cut = _cut_model(changed, whole, layers, folder, empty)
        stacks = shortened(whole, cut)
        names = _names(files, weights)
        known = targets(whole, names)
        kept = _kept(whole, cut, stacks, names, known)
        parts = narrowed(whole, cut)
        cuts = {name: parts[known[name]] for name in kept if known[name] in parts}
        shards, total = _write_shards(files, weights, kept, cuts, folder)
    left = len(names) - len(kept)
    where = tuple(changes), stacks, len(kept), left, total, tuple(shards), tuple(not_copied)
    return Truncated(out, *where)


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` that gets its name when the block has ended well."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = f"{str(out)!r} is there already. Name a folder that is not."
        raise ConfigError(msg)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place:
        folder = Path(place) / out.name
        folder.mkdir()
        yield folder
        folder.replace(out)


def _cut_model(
    config: dict[str, Any], whole: "PreTrainedModel", layers: int, folder: Path, empty: "Empty"
) -> "PreTrainedModel":
    """Write the configuration and return its model, whose layers are those of the whole one."""

    def made() -> "PreTrainedModel":
        _write_json(folder / "config.json", config)
        try:
            return empty(str(folder))
        except Exception as error:  # configurations check themselves, each in its way
            told = " ".join(str(error).split())[:200].replace(str(folder), "config.json")
            msg = f"transformers makes no model of the first {layers} layers: {told.rstrip('.')}. "
            msg += "Keep another number of them."
            raise ModelError(msg) from error

    cut, full = made(), whole.config.to_dict()
    config, before = settled(config, cut.config.to_dict(), full, layers), config
    if config != before:
        cut = made()
    check_settled(cut.config.to_dict(), full, layers)
    return cut


def _copy_others(files: ModelFiles, weights: WeightFiles, folder: Path) -> list[str]:
    left = []
    for file in file_roles(files, weights, {}):
        if file.role == "other weights":
            left.append(file.name)
        if file.role in _LEFT or not is_safe(file.name):
            continue
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files.path(file.name), target)
    return left


def _names(files: ModelFiles, weights: WeightFiles) -> dict[str, str]:
    """Return the tensors of the checkpoint and the shard of each."""
    if not weights.format:
        msg = f"{files.name!r} has no weights."
        raise ModelError(msg)
    absent = [shard for shard in weights.shards if shard not in files.sizes]
    if absent:
        msg = f"{files.name!r} lacks {', '.join(absent[:3])}, which {weights.index} names."
        raise ModelError(msg)
    if weights.places:
        return dict(weights.places)
    (shard,) = weights.shards
    if weights.format == "safetensors":
        return {tensor.name: shard for tensor in files.header(shard)}
    return {source.name: shard for source in from_bin(files.path(shard), lambda _name: True)}


def _kept(
    whole: "PreTrainedModel",
    cut: "PreTrainedModel",
    stacks: Mapping[str, int],
    names: Mapping[str, str],
    known: Mapping[str, str],
) -> dict[str, str]:
    """Return the tensors that the cut model has, and the shard of each.

    Raises:
        ModelError: a layer would have no weights, or none would be left out.
    """
    base = whole.base_model_prefix
    kept = {n: s for n, s in names.items() if not is_beyond(known[n], stacks, base)}
    if len(kept) == len(names):
        msg = f"No tensor of the checkpoint belongs to a layer beyond those of {sorted(stacks)}."
        raise ModelError(msg)
    held = {known[name] for name in kept}
    had = {known[name] for name in names}
    absent = [n for n in cut.state_dict() if n in had and n not in held]
    if absent:
        msg = f"The cut model would lack {', '.join(absent[:3])}."
        raise ModelError(msg)
    return kept


def _write_shards(
    files: ModelFiles,
    weights: WeightFiles,
    kept: Mapping[str, str],
    cuts: Mapping[str, Narrowed],
    folder: Path,
) -> tuple[list[str], int]:
    """Write the kept tensors, shard by shard as they lie; return the files and all bytes."""
    needed = sorted(set(kept.values()))
    places: dict[str, str] = {}
    total = 0
    shards = [_shard_name(i, len(needed)) for i in range(len(needed))]
    for old, new in zip(needed, shards, strict=True):
        wanted = {name for name, shard in kept.items() if shard == old}
        found = _SOURCES[weights.format](files.path(old), wanted.__contains__)
        _check_found(old, wanted, found)
        found = [beginning(s, *cuts[s.name]) if s.name in cuts else s for s in found]
        place = data_start(files.path(old)) if weights.format == "safetensors" else 0
        write_safetensors(folder / new, found, place)
        places |= dict.fromkeys((source.name for source in found), new)
        total += sum(source.nbytes for source in found)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        _write_json(folder / "model.safetensors.index.json", index)
    return shards, total


def _check_found(shard: str, wanted: set[str], found: list[Source]) -> None:
    absent = wanted - {source.name for source in found}
    if absent:
        msg = f"{shard} lacks {', '.join(sorted(absent)[:3])}, which the index says it holds."
        raise ModelError(msg)


def _shard_name(number: int, count: int) -> str:
    if count == 1:
        return "model.safetensors"
    return f"model-{number + 1:05}-of-{count:05}.safetensors"


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
