"""What the user wants dumped: one frozen, validated value that round-trips to a dict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, fields
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self

from hf_dumper.core.names import near
from hf_dumper.core.selection import parse_tokens
from hf_dumper.errors import ConfigError, NotYetError

Tokens = str | range | Sequence[int] | None

_LATER = (
    "api_list",
    "mode",
)
"""Fields whose feature a later release brings: until then only the default is taken."""

INPUTS, OUTPUTS, BOTH_PARTS = 0, 1, 2
TENSORS, STATISTICS, BOTH = 0, 1, 2
MODES = "module", "api"
LAYOUTS = NATIVE, MSIT = "native", "msit"
WARN, RAISE = "warn", "raise"


@dataclass(frozen=True)
class DumpConfig:
    """What to dump, and where to; `DumpConfig()` alone is useful.

    Attributes:
        dump_path: Folder of the dump; None makes `hf_dump_<date>_<time>` in the working directory.
        token_range: Generated tokens to dump, 0 being the prefill: None means [0], a list or range
            of integers, "0-3,8", or "all". Bare forwards are always dumped.
        module_list: Module classes, or their names; a module is dumped when it is an instance of
            one. Empty means every class.
        api_list: Functions to dump in api mode, or their names.
        mode: "module", "api", or a list of both.
        layer_name: Name or names of modules; `*` stands for any characters, dots included. With or
            without a leading `root.`. None means every name.
        tensor_part: 0 inputs only, 1 outputs only, 2 both.
        device_id: Index of the accelerator whose tensors are dumped; None means every device.
        dump_statistics_mode: 0 tensors, 1 statistics, 2 both.
        analyze: Write `tensor_analyze.csv` into each run: extremes, variance and mean of every
            tensor. The variance is that of the population.
        dump_last_logits: Dump only the logits of the last unmasked column, the scores and the
            chosen token, for each token in `token_range`.
        dump_weight: Dump parameters and buffers of the modules that `layer_name` selects, and
            of the modules inside them; tied ones once, offloaded ones with their true values.
        dump_kv_cache: Dump keys and values that each token adds to the cache, per layer, and the
            states of state-space layers.
        seed: Run every generation and bare forward under `seeded(seed)`; None leaves the process
            alone.
        layout: "native", or "msit": a .pth file per tensor, in a new folder `msit_dump_<time>`
            for each run, so that nothing is ever overwritten.
        overwrite: Replace a dump of something else that lies at `dump_path`.
        max_bytes: Bound on what the files of the dump take together; where it is reached, the
            recording ends, as with any other error of the dump. None means no bound.
        on_error: What an error of the dump itself does: "warn" ends the recording of the run, the
            generation goes on; "raise" stops the generation at the next token.
        durable: Wait for the disk (fsync) at the end of every run.
        hash_weights: Hash the weights into the manifest.
        allow_eager: Run a compiled model without its compilation instead of refusing it; whatever
            else is compiled in the process runs without, too, until the session is closed.

    Raises:
        ConfigError: a value that cannot be meant.
        NotYetError: an option that a later release brings.
    """

    dump_path: str | PathLike[str] | None = None
    token_range: Tokens = None
    _: KW_ONLY
    module_list: Sequence[type | str] = ()
    api_list: Sequence[Callable[..., Any] | str] = ()
    mode: str | Sequence[str] = "module"
    layer_name: str | Sequence[str] | None = None
    tensor_part: int = BOTH_PARTS
    device_id: int | None = None
    dump_statistics_mode: int = TENSORS
    analyze: bool = False
    dump_last_logits: bool = False
    dump_weight: bool = False
    dump_kv_cache: bool = False
    seed: int | None = None
    layout: str = "native"
    overwrite: bool = False
    max_bytes: int | None = None
    on_error: str = WARN
    durable: bool = False
    hash_weights: bool = True
    allow_eager: bool = False

    def __post_init__(self) -> None:
        """Check every field, so that a mistake shows where it is made."""
        if self.dump_path is not None:
            object.__setattr__(self, "dump_path", Path(_path(self.dump_path)))
        for name, can_be in (("module_list", _is_class), ("api_list", callable)):
            object.__setattr__(self, name, _listed(name, getattr(self, name), can_be))
        object.__setattr__(self, "mode", _mode(self.mode))
        parse_tokens(self.token_range)
        if self.token_range is not None and not isinstance(self.token_range, str):
            object.__setattr__(self, "token_range", tuple(self.token_range))
        if self.layout not in LAYOUTS:
            msg = f"layout must be 'native' or 'msit', not {self.layout!r}."
            raise ConfigError(msg)
        _check_choice("tensor_part", self.tensor_part, (INPUTS, OUTPUTS, BOTH_PARTS))
        _check_choice(
            "dump_statistics_mode", self.dump_statistics_mode, (TENSORS, STATISTICS, BOTH)
        )
        for field in fields(self):
            if field.type in (bool, "bool") and not isinstance(getattr(self, field.name), bool):
                msg = f"{field.name} must be True or False, not {getattr(self, field.name)!r}."
                raise ConfigError(msg)
        _check_choice("on_error", self.on_error, (WARN, RAISE))
        _check_bound(self.max_bytes)
        _check_int("device_id", self.device_id)
        _check_int("seed", self.seed)
        _check_names(self.layer_name)
        self._refuse_later()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a configuration from plain values.

        Raises:
            ConfigError: an unknown key; the message names the nearest known one.
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                msg = f"Unknown option {key!r} in the dump configuration.{near(key, known)}"
                raise ConfigError(msg)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-ready values from which `from_dict` makes an equal configuration.

        Classes and functions become their names, so they compare equal only by name.
        """
        plain = asdict(self)
        plain["dump_path"] = None if self.dump_path is None else fspath(self.dump_path)
        if isinstance(self.token_range, tuple):
            plain["token_range"] = list(self.token_range)
        plain["module_list"] = [_name(m) for m in self.module_list]
        plain["api_list"] = [_name(a) for a in self.api_list]
        return plain

    def _refuse_later(self) -> None:
        defaults = {f.name: f.default for f in fields(self)}
        for name in _LATER:
            if getattr(self, name) != defaults[name]:
                msg = (
                    f"{name}={getattr(self, name)!r} is not supported yet; leave it at its default."
                )
                raise NotYetError(msg)


def _path(value: object) -> str:
    if not isinstance(value, str | PathLike) or not isinstance(fspath(value), str) or not value:
        msg = f"dump_path must be a path, not {value!r}."
        raise ConfigError(msg)
    return fspath(value)


def _name(value: object) -> str:
    return value if isinstance(value, str) else getattr(value, "__name__", repr(value))


def _mode(value: Any) -> str | tuple[str, ...]:
    """Return a single mode as its name, also when it is given in a list."""
    modes = [value] if isinstance(value, str) else value
    if not isinstance(modes, Sequence) or not modes or any(m not in MODES for m in modes):
        msg = f"mode must be 'module', 'api', or a list of both, not {value!r}."
        raise ConfigError(msg)
    return modes[0] if len(set(modes)) == 1 else tuple(modes)


def _first_line(value: object) -> str:
    return repr(value).partition("\n")[0]


def _is_class(value: object) -> bool:
    return isinstance(value, type)


def _listed(name: str, value: object, can_be: Callable[[object], bool]) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        msg = f"{name} must be a list, not {value!r}."
        raise ConfigError(msg)
    for item in value:
        if not isinstance(item, str) and not can_be(item):
            kind = "class" if can_be is _is_class else "function"
            msg = f"{name} holds {_first_line(item)}, which is neither a name nor a {kind}."
            raise ConfigError(msg)
    return tuple(value)


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if isinstance(value, bool) or value not in choices:
        msg = f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}."
        raise ConfigError(msg)


def _check_int(name: str, value: Any) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (whole and 0 <= value < 2**64):
        msg = f"{name} must be an integer from 0 to 2**64 - 1, or None, not {value!r}."
        raise ConfigError(msg)


def _check_bound(value: object) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if value is not None and not whole:
        msg = f"max_bytes must be a number of bytes above 0, or None, not {value!r}."
        raise ConfigError(msg)


def _check_names(value: object) -> None:
    names = [value] if isinstance(value, str) else value
    if names is None:
        return
    if (
        not isinstance(names, Sequence)
        or not names
        or not all(isinstance(n, str) and n for n in names)
    ):
        msg = f"layer_name must be a name or a list of names, not {value!r}."
        raise ConfigError(msg)
