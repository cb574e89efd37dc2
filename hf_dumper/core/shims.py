"""What was changed about a model so that it loads: kept with the model, told in the manifest."""

from collections.abc import Mapping
from typing import Any, Final

_NOTE: Final = "_hf_dumper_shims"


def note_shims(model: Any, shims: Mapping[str, str]) -> None:
    """Keep with a model which shims it has: name -> why. None at all leaves no trace."""
    if shims:
        model.__dict__[_NOTE] = dict(shims)


def shims_of(model: Any) -> dict[str, str]:
    """Return the shims of a model: name -> why; empty for most models."""
    return dict(getattr(model, "__dict__", {}).get(_NOTE, {}))
