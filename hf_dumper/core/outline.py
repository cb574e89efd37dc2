"""What a model is made of: its modules, the shapes of what they return, and its parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Slot and shape of each tensor that a module returns."""


@dataclass(frozen=True, slots=True)
class ModuleOutline:
    """One module, with all that is below it.

    A tensor that several modules share is counted at the first of them, in the order of
    `named_modules()`, so that sums of modules are sums of tensors.

    Attributes:
        name: Dotted name, `root` for the outermost module.
        class_name: Class of the module.
        depth: Number of modules above it.
        outputs: What its first call returns, None when that is not known.
        why: Why `outputs` is None, "" when it is known or the module only holds others.
        parameters: Elements of the parameters.
        trainable: Elements of those that require gradients.
        buffers: Elements of the buffers.
        bytes: Bytes of both.
        tied: Own parameters that are counted elsewhere, as "weight = model.embed_tokens.weight".
    """

    name: str
    class_name: str
    depth: int
    outputs: Shapes | None
    why: str
    parameters: int
    trainable: int
    buffers: int
    bytes: int
    tied: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DtypeTotal:
    """Parameters and buffers of one dtype: their elements and their bytes."""

    parameters: int
    buffers: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Outline:
    """A model without its weights; the first of the modules is the model itself.

    Attributes:
        modules: In the order of `named_modules()`.
        dtypes: Totals for each dtype.
        inputs: Shapes of what the model was given to learn the shapes.
        notes: What else is to be known about the shapes and the sizes.
    """

    modules: Sequence[ModuleOutline]
    dtypes: Mapping[str, DtypeTotal]
    inputs: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()

    @property
    def unknown(self) -> Mapping[str, int]:
        """Why shapes are not known -> of how many modules."""
        reasons = [module.why for module in self.modules if module.why]
        return {why: reasons.count(why) for why in dict.fromkeys(reasons)}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; the totals are those of the model as a whole."""
        root = self.modules[0]
        return {
            "class": root.class_name,
            "parameters": root.parameters,
            "trainable": root.trainable,
            "buffers": root.buffers,
            "bytes": root.bytes,
            "dtypes": {name: asdict(total) for name, total in self.dtypes.items()},
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "unknown_shapes": sum(self.unknown.values()),
            "unknown_by_reason": dict(self.unknown),
            "notes": list(self.notes),
            "modules": [_as_dict(module) for module in self.modules],
        }


def _as_dict(module: ModuleOutline) -> dict[str, Any]:
    outputs = module.outputs
    shapes = None if outputs is None else {slot: list(shape) for slot, shape in outputs}
    return asdict(module) | {"outputs": shapes, "tied": list(module.tied)}
