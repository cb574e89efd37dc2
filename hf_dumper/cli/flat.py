"""Commands that take dataclasses of options."""

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints


def flat(function: Callable[..., int]) -> Callable[..., int]:
    """Let a command take dataclasses of options; typer is shown one parameter per field."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    shown: list[Parameter] = []
    for parameter in signature(function).parameters.values():
        cls = groups.get(parameter.name)
        shown += _parameters(cls) if cls else [parameter.replace(annotation=hints[parameter.name])]

    @wraps(function)
    def command(**values: Any) -> int:
        for name, cls in groups.items():
            values[name] = cls(**{f.name: values.pop(f.name) for f in fields(cls)})
        return function(**values)

    keyword = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in shown]
    command.__signature__ = Signature(keyword)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in keyword}
    del command.__wrapped__  # or typer would look through to the function
    return command


def _parameters(cls: Any) -> list[Parameter]:
    hints = get_type_hints(cls, include_extras=True)
    return [
        Parameter(
            f.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if f.default is MISSING else f.default,
            annotation=hints[f.name],
        )
        for f in fields(cls)
    ]
