from typing import Any

import torch

from hf_dumper.capture import hooks

class Intake(hooks.Intake): ...

class Tap:
    intake: Intake | None
    def __init__(
        self, source: tuple[str, str], params: tuple[str, ...], intake: hooks.Intake
    ) -> None: ...
    def before(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None: ...
    def after(self, _module: Any, _args: Any, _kwargs: Any, output: Any) -> None: ...

def bind(tensor: type[torch.Tensor], parameter: type[torch.Tensor]) -> None: ...
