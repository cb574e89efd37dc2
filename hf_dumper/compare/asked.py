"""What a dump of ours was asked to hold: what it was not asked for is not missing from it."""

from collections.abc import Mapping
from typing import Any, Final

from hf_dumper.compare.records import Rec
from hf_dumper.config import INPUTS
from hf_dumper.core.selection import parse_tokens
from hf_dumper.core.types import ROOT

NOT_ASKED: Final = "the candidate was not asked for it"

_OF_LAST_LOGITS: Final = frozenset({"logits", "scores", "token_ids"})


class Asked:
    """The selection of a dump, from the DumpConfig in its manifest; another tool's has none."""

    def __init__(self, manifest: Mapping[str, Any], modules: frozenset[str]) -> None:
        """Read the manifest; `modules` are those that the dump has records of."""
        options = manifest.get("identity", {}).get("dump_config") or {}
        self._modules = modules
        self._tokens = parse_tokens(options.get("token_range")) if options else None
        self._only_logits = bool(options.get("dump_last_logits"))
        self._chosen = bool(options.get("layer_name") or options.get("module_list"))
        self._inputs_only = options.get("tensor_part") == INPUTS

    def covers(self, record: Rec) -> bool:
        """Tell whether a record like this one should be in the dump."""
        if self._tokens is not None and record.token not in self._tokens:
            return False
        if self._only_logits:
            return record.module == ROOT and record.slot in _OF_LAST_LOGITS
        if record.module == ROOT and record.slot in _OF_LAST_LOGITS:
            return True
        if self._chosen and record.module not in self._modules:
            return False
        return not self._inputs_only or record.slot.startswith("input")
