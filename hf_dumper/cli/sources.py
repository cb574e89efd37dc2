"""What a model is to generate from: prompts, or the runs of a golden dump."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

from hf_dumper.cli.options import GenerationOptions, PromptOptions, given
from hf_dumper.cli.terminal import Work
from hf_dumper.errors import ConfigError
from hf_dumper.launch import Launch

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from hf_dumper.core.protocols import DumpReader
    from hf_dumper.prompts import GoldenRun, Prompt
    from hf_dumper.runner import PromptResult
    from hf_dumper.session import DumpSession

T = TypeVar("T")

_SELECTION: Final = (
    "token_range",
    "module_list",
    "layer_name",
    "tensor_part",
    "dump_statistics_mode",
    "dump_last_logits",
    "dump_kv_cache",
)
"""Fields of DumpConfig that say what is dumped."""

OnToken = Callable[[int, int], None]
"""Is told the index of the prompt and how many tokens it has so far."""


class Source(Protocol):
    """Prompts, and how tokens follow from them.

    Attributes:
        launch: Whose share of the prompts is run: that of this process of it.
    """

    launch: Launch

    @property
    def asked(self) -> int:
        """How many runs were asked for."""

    @property
    def tokens(self) -> list[int]:
        """Tokens that each run generates at most."""

    def selection(self) -> Mapping[str, Any]:
        """Return what is to be dumped unless options say otherwise."""

    def first(self, tokenizer: Any) -> tuple[Mapping[str, "torch.Tensor"], dict[str, Any]]:
        """Return the first inputs, and what `generate()` takes besides."""

    def each(
        self, model: "PreTrainedModel", tokenizer: Any, on_token: OnToken
    ) -> "Iterator[PromptResult]":
        """Run the model, and yield what became of each run when it is on disk."""


class Prompts:
    """Prompts from which the model goes on as it likes."""

    launch = Launch()

    def __init__(self, prompts: "list[Prompt]", kwargs: dict[str, Any], *, chat: bool) -> None:
        """Generate with the keyword arguments."""
        self._prompts = prompts
        self._kwargs = kwargs
        self._chat = chat

    @property
    def asked(self) -> int:
        """How many prompts there are."""
        return len(list(self.launch.share_of(self._prompts)))

    @property
    def tokens(self) -> list[int]:
        """As many for each."""
        return [self._kwargs["max_new_tokens"]] * self.asked

    def selection(self) -> Mapping[str, Any]:
        """Return nothing: DumpConfig has defaults."""
        return {}

    def first(self, tokenizer: Any) -> tuple[Mapping[str, "torch.Tensor"], dict[str, Any]]:
        """Return the first prompt as tensors."""
        from hf_dumper.prompts import encode

        return encode(tokenizer, self._prompts[0], self._chat), dict(self._kwargs)

    def each(
        self, model: "PreTrainedModel", tokenizer: Any, on_token: OnToken
    ) -> "Iterator[PromptResult]":
        """Generate from one prompt after the other."""
        from hf_dumper.runner import each_prompt

        options = {"chat": self._chat, "on_progress": on_token, **self._kwargs}
        prompts = numbered(model, enumerate(self._prompts), self.launch)
        return each_prompt(model, tokenizer, prompts, **options)


class Golden:
    """Runs of a golden dump, which the model follows token by token."""

    launch = Launch()

    def __init__(self, golden: "DumpReader", runs: "list[GoldenRun]") -> None:
        """Follow the runs; those of the dump that are not among them are missing."""
        self._golden = golden
        self._runs = runs

    @property
    def asked(self) -> int:
        """How many runs the golden dump has."""
        return len(list(self.launch.share_of(self._golden.runs())))

    @property
    def tokens(self) -> list[int]:
        """As many as the golden has."""
        runs = self.launch.share_of(self._runs)
        return [0 if run.ids is None else run.ids.shape[1] for run in runs]

    def selection(self) -> Mapping[str, Any]:
        """Return what the golden dump holds."""
        identity = self._golden.manifest.get("identity") or {}
        config = identity.get("dump_config") or {}
        return {name: config[name] for name in _SELECTION if name in config}

    def first(self, tokenizer: Any) -> tuple[Mapping[str, "torch.Tensor"], dict[str, Any]]:
        """Return the inputs of the first run, and how many tokens it has."""
        return self._runs[0].inputs, {"max_new_tokens": max(1, self.tokens[0]), "do_sample": False}

    def each(
        self, model: "PreTrainedModel", tokenizer: Any, on_token: OnToken
    ) -> "Iterator[PromptResult]":
        """Follow one run after the other."""
        from hf_dumper.runner import each_golden

        runs = numbered(model, ((run.run, run) for run in self._runs), self.launch)
        return each_golden(model, tokenizer, runs, self._golden, on_progress=on_token)


def numbered(
    model: "PreTrainedModel", rows: Iterable[tuple[int, T]], launch: Launch
) -> Iterator[T]:
    """Yield this process's share of the rows; with others at work, a run has its row's number."""
    session = cast("DumpSession", model.dump)
    for number, row in launch.share_of(rows):
        if launch.size > 1:
            session.number_next(number)
        yield row


def source_of(prompts: PromptOptions, generation: GenerationOptions) -> Source:
    """Return what the options ask for.

    Raises:
        ConfigError: options that contradict each other, or neither prompts nor a dump to follow.
    """
    if prompts.follow is not None:
        return _golden(prompts.follow.expanduser(), prompts, generation)
    kwargs = generation.to_kwargs()
    return Prompts(_prompts(prompts), kwargs, chat=prompts.chat)


def _golden(path: Path, prompts: PromptOptions, generation: GenerationOptions) -> Golden:
    from hf_dumper.cli.inspect import open_indexed
    from hf_dumper.cli.terminal import calm

    others = [name for name in given(prompts) + given(generation) if name != "--follow"]
    if others:
        msg = f"{', '.join(others)}: --follow takes prompts and tokens from {str(path)!r}."
        raise ConfigError(msg)
    with Work(f"Reading {path}"), calm():
        from hf_dumper.prompts import golden_runs

        reader = open_indexed(path)
        return Golden(reader, golden_runs(reader))


def _prompts(options: PromptOptions) -> "list[Prompt]":
    from hf_dumper.prompts.files import load_prompts
    from hf_dumper.prompts.prompt import Prompt

    if options.column and options.prompts is None:
        msg = "--column is about --prompts FILE, which is not given."
        raise ConfigError(msg)
    if options.prompt and options.prompts is None:
        return [Prompt(str(i), text=text) for i, text in enumerate(options.prompt)]
    if options.prompt or options.prompts is None:
        msg = "Give either --prompt TEXT, once or several times, or --prompts FILE."
        raise ConfigError(msg)
    path = options.prompts.expanduser()
    with Work(f"Reading {path}"):
        return load_prompts(path, column=options.column, chat=options.chat)
