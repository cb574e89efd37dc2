"""Which files hold the weights that transformers would load, and which tensor lies where."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from hf_dumper.errors import ModelError
from hf_dumper.models.files import FolderFiles, ModelFiles, is_safe, read_json
from hf_dumper.models.headers import Header, read_bin

_FORMATS: Final = (
    ("safetensors", "model.safetensors"),
    ("bin", "pytorch_model.bin"),
)
"""In the order in which `from_pretrained` looks for them: whole first, then by its index."""


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The weights of a model by file.

    Attributes:
        format: "safetensors", "bin", or "" when there are none.
        index: Name of the index file, None when the weights are one file.
        shards: Files in order of name; some may be missing.
        places: Tensor -> shard as the index says; {} without an index.
    """

    format: str
    index: str | None
    shards: tuple[str, ...]
    places: Mapping[str, str]


def weight_files(files: ModelFiles) -> WeightFiles:
    """Return the files of weights that transformers would load.

    Raises:
        ModelError: an index that is none, or that names a file outside of the folder.
    """
    for kind, whole in _FORMATS:
        if whole in files.sizes:
            return WeightFiles(kind, None, (whole,), {})
        index = f"{whole}.index.json"
        if index in files.sizes:
            places = _places(files, index)
            return WeightFiles(kind, index, tuple(sorted(set(places.values()))), places)
    return WeightFiles("", None, (), {})


def _places(files: ModelFiles, index: str) -> dict[str, str]:
    places = read_json(files, index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        msg = f"{index} of {files.name!r} has no weight_map of names."
        raise ModelError(msg)
    for shard in places.values():
        if not is_safe(shard):
            msg = f"{index} of {files.name!r} names {shard!r}, which is outside of the model."
            raise ModelError(msg)
    return places


def read_headers(files: ModelFiles, weights: WeightFiles) -> tuple[Header, dict[str, str]]:
    """Return the tensors of all shards that are there, and why those of a shard are not known."""
    found: Header = []
    unread: dict[str, str] = {}
    for shard in weights.shards:
        if shard not in files.sizes:
            continue  # told as missing
        header, why = _READERS[weights.format](files, shard)
        found += header
        if why:
            unread[shard] = why
    return found, unread


def _safetensors(files: ModelFiles, shard: str) -> tuple[Header, str]:
    return files.header(shard), ""


def _bin(files: ModelFiles, shard: str) -> tuple[Header, str]:
    if not isinstance(files, FolderFiles):
        return [], "a .bin file of the hub cannot be read without downloading it"
    return read_bin(files.path(shard))


_READERS: Final[Mapping[str, Callable[[ModelFiles, str], tuple[Header, str]]]] = {
    "safetensors": _safetensors,
    "bin": _bin,
}
