"""Models and tokenizers by the name that a user types."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hf_dumper.cli.failures import hub_reason, one_line
from hf_dumper.cli.options import ModelOptions
from hf_dumper.cli.terminal import Work, calm
from hf_dumper.core.names import near
from hf_dumper.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNREACHABLE: Final = (
    "ConnectError",
    "ConnectTimeout",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ProxyError",
    "ReadTimeout",
)
"""Classes of errors after which it is useless to ask the hub for files."""

DEMO: Final = "demo"
"""The word for the embedded model; a folder of that name is `./demo`."""

_FOR_TOKENIZER: Final = ("revision", "trust_remote_code", "local_files_only")

_DTYPES: Final = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp64": "float64"}


class _Place(NamedTuple):
    """Where a model is: what `from_pretrained` is to be given, and keywords beside it."""

    name: str
    is_here: bool
    source: str
    keywords: dict[str, bool]

    @contextmanager
    def told(self, what: str) -> Iterator[None]:
        """Tell in one line what goes wrong when `what` is loaded."""
        try:
            yield
        except Exception as error:  # files of others, read by code of others
            raise ModelError(_why(self.name, what, error, is_here=self.is_here)) from error


def load_model(name: str, options: ModelOptions) -> tuple["PreTrainedModel", Any]:
    """Return a model and its tokenizer.

    Raises:
        ModelError: there is no such model, or it cannot be loaded; one line that says why.
        ConfigError: an unknown dtype.
    """
    kwargs = _kwargs(options)
    with _found(name, options.revision, "Loading", bars=True) as place:
        from transformers import AutoTokenizer

        model = _load(place, kwargs)
        hub = {k: v for k, v in kwargs.items() if k in _FOR_TOKENIZER} | place.keywords
        with place.told(f"the tokenizer of {name!r}"):
            hub = {"trust_remote_code": False} | hub
            return model, AutoTokenizer.from_pretrained(place.source, **hub)


def load_weights(name: str, options: ModelOptions, **more: Any) -> "PreTrainedModel":
    """Return a model without its tokenizer; `more` is for `from_pretrained` besides the options.

    Raises:
        ModelError: there is no such model, or it cannot be loaded; one line that says why.
        ConfigError: an unknown dtype.
    """
    with _found(name, options.revision, "Loading") as place:
        return _load(place, _kwargs(options) | more)


def load_empty(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedModel":
    """Return a model without weights, by its configuration alone.

    Raises:
        ModelError: there is no such model, or it cannot be made; one line that says why.
    """
    options: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    with _found(name, revision, "Reading") as place, place.told(repr(name)):
        from hf_dumper.model import empty_model

        if revision is not None and not place.is_here:
            options["revision"] = revision
        return empty_model(place.source, **options, **place.keywords)


@contextmanager
def _found(name: str, revision: str | None, doing: str, *, bars: bool = False) -> Iterator[_Place]:
    """Yield where a model is, while the terminal shows what is done; `bars` lets downloads too."""
    is_here = name == DEMO or check_folder(name)
    bars = bars and not is_here and sys.stderr.isatty()
    with Work(f"{doing} {name}") as work, calm(bars=bars):
        if bars:
            work.hide()
        from hf_dumper.model import DEMO_MODEL

        cached = not is_here and must_be_cached(name, revision)
        source = DEMO_MODEL if name == DEMO else str(Path(name).expanduser()) if is_here else name
        yield _Place(name, is_here, source, {"local_files_only": True} if cached else {})


def _load(place: _Place, options: dict[str, Any]) -> "PreTrainedModel":
    from hf_dumper.model import load

    _check_dtype(options)
    with place.told(repr(place.name)):
        return load(place.source, None, **options, **place.keywords)


def check_folder(name: str) -> bool:
    """Tell whether a model is a folder here; False means that the hub is to be asked.

    Raises:
        ModelError: it looks like a path and is none, or is no folder of a model.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return True
        inside = ", ".join(repr(str(p)) for p in _models_in(path))
        hint = f" There are models at {inside}." if inside else ""
        msg = f"{name!r} holds no config.json, so it is no model of transformers.{hint}"
        raise ModelError(msg)
    if path.exists():
        msg = f"{name!r} is a file. Name the folder of the model, or a repository of the hub."
        raise ModelError(msg)
    if name.startswith((".", "~", "/")) or "\\" in name or name.count("/") > 1 or not name:
        msg = f"There is no folder {name!r}.{_near(path)}"
        raise ModelError(msg)
    return False


def must_be_cached(name: str, revision: str | None) -> bool:
    """Tell whether the hub is out of reach and there is a copy in the cache to load instead.

    One question without retries; `from_pretrained` would retry every file for most of a minute.

    Raises:
        ModelError: the hub is out of reach, and there is no copy.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        HfApi().model_info(name, revision=revision, timeout=10)
    except Exception as error:
        reason = hub_reason(error)
        if not isinstance(error, ConnectionError) and type(error).__name__ not in _UNREACHABLE:
            return False  # whatever it is, loading meets it as well, and may know a way round
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return True
        msg = f"Cannot load {name!r}: no folder here has that name, and {reason}."
        raise ModelError(msg + _near(Path(name))) from error
    return False


def _kwargs(options: ModelOptions) -> dict[str, Any]:
    given = {
        "dtype": options.dtype and _DTYPES.get(options.dtype, options.dtype),
        "attn_implementation": options.attn_implementation,
        "device_map": options.device_map,
        "revision": options.revision,
        "trust_remote_code": options.trust_remote_code or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _check_dtype(kwargs: dict[str, Any]) -> None:
    import torch

    name = kwargs.get("dtype", "auto")
    if name == "auto" or isinstance(getattr(torch, name, None), torch.dtype):
        return
    known = ["auto", "float32", "float16", "bfloat16", "float64"]
    msg = f"There is no dtype {name!r}.{near(name, known)}"
    raise ConfigError(msg)


def _why(name: str, what: str, error: Exception, *, is_here: bool) -> str:
    reason = None if is_here else hub_reason(error)
    if reason is None:
        return f"Cannot load {what}: {_readable(error)}"
    return f"Cannot load {what}: no folder here has that name, and {reason}.{_near(Path(name))}"


def _readable(error: Exception) -> str:
    """Return the first paragraph of an error, with its class where that is half of the news."""
    plain = isinstance(error, OSError | ValueError | ImportError)
    text = str(error) if plain else f"{type(error).__name__}: {error}"
    return one_line(text.strip().split("\n\n")[0])


def _near(path: Path) -> str:
    """Name the folders of models beside a path that are called much the same."""
    names = {p.name: str(p) for p in _models_in(path.parent)}
    found = near(path.name, names) if names else ""
    for name, whole in names.items():
        found = found.replace(repr(name), repr(whole))
    return found


def _models_in(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(p.parent for p in folder.glob("*/config.json"))
    except OSError:
        return
