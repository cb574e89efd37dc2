"""What code of repositories needs that was written for an older transformers.

Each shim is applied to code of a repository alone, never to a class of transformers, and only where
the code lacks, or asks for, what the shim is about. What is put into transformers for the time of
loading is taken out when the model is there; what the model needs to generate stays with its class.
`docs/models.md` has the list.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import add_generation_mixin_to_remote_model

from hf_dumper.core.shims import note_shims

_LAYERS: Final = ("num_layers", "n_layer", "n_layers")
"""What configurations call the number of layers, beside `num_hidden_layers`."""

_OF_OLD_CACHES: Final = "_extract_past_from_model_output"
"""Method of GenerationMixin until 4.4x: who calls it has caches that are tuples."""

SHIMS: Final[Mapping[str, str]] = {
    "post_init": "the code does not call post_init(), which is done when the weights are in",
    "generation_mixin": "the class is loaded again, and gets generate() as it did at first",
    "num_hidden_layers": "the configuration has another name for the number of layers",
    "old_generation": "the code generates as before transformers 4.42: with tuples for a cache, "
    "position ids and masks of its own",
}
"""Name of each shim -> why it was applied, as the manifest tells it."""


@contextmanager
def shimmed(config: PretrainedConfig) -> Iterator[Callable[[PreTrainedModel], None]]:
    """Let code of a repository load while the block runs; yield what finishes the loaded model.

    `config` is the model's. For a class of transformers nothing is done.
    """
    if not _is_remote(type(config)):
        yield lambda _model: None
        return
    applied: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(_post_init(applied))
        stack.enter_context(_generation_mixin(type(config), applied))
        _name_layers(config, applied)

        def finish(model: PreTrainedModel) -> None:
            _let_generate(model, applied)
            note_shims(model, {name: SHIMS[name] for name in applied})

        yield finish


def _is_remote(cls: type) -> bool:
    return cls.__module__.startswith("transformers_modules.")


@contextmanager
def _post_init(applied: list[str]) -> Iterator[None]:
    """Call `post_init()` of a model that did not, before its loading is finished."""
    loader: Any = PreTrainedModel
    original: Any = loader.__dict__["_finalize_model_loading"]

    def finalize(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(model, "all_tied_weights_keys"):
            applied.append("post_init")
            model.post_init()
        return original.__func__(model, *args, **kwargs)

    loader._finalize_model_loading = staticmethod(finalize)
    try:
        yield
    finally:
        loader._finalize_model_loading = original


@contextmanager
def _generation_mixin(config: type[PretrainedConfig], applied: list[str]) -> Iterator[None]:
    """Give `generate()` to classes that an Auto class knows from an earlier load without it.

    At the first load an Auto class adds it, but it remembers the class as it was (5.23).
    """
    from transformers.models.auto import modeling_auto

    autos: list[Any] = [v for v in vars(modeling_auto).values() if isinstance(v, type)]
    changed = []
    for mapping in {id(m): m for a in autos if (m := getattr(a, "_model_mapping", None))}.values():
        known = getattr(mapping, "_extra_content", {}).get(config)
        if isinstance(known, type) and _is_remote(known):
            able = add_generation_mixin_to_remote_model(known)
            if able is not known:
                mapping._extra_content[config] = able
                changed.append((mapping, known))
    if changed:
        applied.append("generation_mixin")
    try:
        yield
    finally:
        for mapping, known in changed:
            mapping._extra_content[config] = known


def _name_layers(config: PretrainedConfig, applied: list[str]) -> None:
    """Let a configuration answer to `num_hidden_layers`; what it saves stays as it is."""
    own: Any = type(config)
    named = next((name for name in _LAYERS if isinstance(getattr(config, name, None), int)), None)
    if named is not None and not hasattr(config, "num_hidden_layers"):
        own.attribute_map = {**own.attribute_map, "num_hidden_layers": named}
    if named is not None and own.attribute_map.get("num_hidden_layers") == named:
        applied.append("num_hidden_layers")


class OldGeneration:
    """What `generate()` asks of a model, answered as transformers did before 4.42."""

    _deep_mask: torch.Tensor | None = None

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate; a mask of more than two axes comes to the model as it is."""
        mask = kwargs.get("attention_mask")
        if not isinstance(mask, torch.Tensor) or mask.ndim <= 2:
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        self._deep_mask = kwargs.pop("attention_mask")
        try:
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._deep_mask = None

    def _prepare_attention_mask_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        if self._deep_mask is not None:
            return self._deep_mask
        return super()._prepare_attention_mask_for_generation(*args, **kwargs)  # type: ignore[misc]

    def _prepare_position_ids_for_generation(self, *_args: Any, **_kwargs: Any) -> None:
        """Make none: the code makes them itself where it is given none."""

    def _extract_past_from_model_output(self, outputs: Any, **_kwargs: Any) -> Any:
        return outputs.past_key_values

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False


def _let_generate(model: PreTrainedModel, applied: list[str]) -> None:
    cls = type(model)
    if not _is_remote(cls) or not model.can_generate() or hasattr(model, _OF_OLD_CACHES):
        return
    if any(_calls(vars(base), _OF_OLD_CACHES) for base in cls.__mro__ if _is_remote(base)):
        own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        model.__class__ = type(cls.__name__, (OldGeneration, cls), own)
        applied.append("old_generation")


def _calls(methods: Mapping[str, Any], name: str) -> bool:
    codes = (getattr(method, "__code__", None) for method in methods.values())
    return any(name in code.co_names for code in codes if code is not None)
