"""Data sets of the hub: one subset, at one commit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_dumper.core.names import near
from hf_dumper.errors import PromptError
from hf_dumper.prompts.files import neighbours
from hf_dumper.prompts.quiet import reading

if TYPE_CHECKING:
    from datasets import DatasetBuilder


def load_hub(
    name: str, subset: str | None, revision: str | None, *, streaming: bool
) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Return the splits of a data set, and which "subset" and which commit ("revision") they are.

    Raises:
        PromptError: there is none, it has several subsets, or the cache holds another commit.
    """
    try:
        with reading(repr(name)):
            builder = _builder(name, subset, revision)
            _check_commit(builder, revision)
            facts = {"subset": str(builder.config.name), "revision": str(builder.hash)}
            if streaming:
                return builder.as_streaming_dataset(), facts
            builder.download_and_prepare()
            return builder.as_dataset(), facts
    except PromptError as error:
        if not _is_unknown(error.__cause__):
            raise
        msg = f"{str(error).rstrip('.')}. Nor is there a file or folder of that name."
        raise PromptError(msg + neighbours(Path(name))) from error.__cause__


def _builder(name: str, subset: str | None, revision: str | None) -> "DatasetBuilder":
    from datasets import get_dataset_config_names, load_dataset_builder

    try:
        return load_dataset_builder(name, subset, revision=revision)
    except ValueError as error:
        subsets = get_dataset_config_names(name, revision=revision)
        if subset in subsets or (subset is None and len(subsets) < 2):
            raise
        raise _no_subset(name, subset, subsets) from error


def _no_subset(name: str, subset: str | None, subsets: Sequence[str]) -> PromptError:
    listed = f"Subsets: {', '.join(map(repr, subsets))}."
    if subset is None:
        return PromptError(f"Which subset of {name!r}? Name one (--subset). {listed}")
    hint = near(subset, subsets) if len(subsets) > 1 else ""
    return PromptError(f"{name!r} has no subset {subset!r}.{hint} {listed}")


def _check_commit(builder: "DatasetBuilder", revision: str | None) -> None:
    """Refuse a copy in the cache that need not be what was asked for: no hub said what it is."""
    is_copy = type(builder).__module__ == "datasets.packaged_modules.cache.cache"
    if is_copy and revision not in (None, builder.hash):
        msg = f"the hub cannot be reached, and the cache holds {builder.hash}, not {revision!r}."
        raise ValueError(msg)


def _is_unknown(cause: BaseException | None) -> bool:
    """Tell whether the hub has no data set of the name, or cannot be asked."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError

    if cause is None or isinstance(cause.__cause__, RevisionNotFoundError):
        return False
    return isinstance(cause, DatasetNotFoundError | ConnectionError | FileNotFoundError)
