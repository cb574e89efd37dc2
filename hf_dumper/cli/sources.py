"""What a model is to generate from: prompts, a data set, or the runs of a golden dump."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    from hf_dumper.prompts import GoldenRun, Prompt, PromptRows
    from hf_dumper.runner import PromptResult, RowRunner
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
        """How many prompts were asked for; of a data set, those that were not done before."""

    @property
    def rows(self) -> "RowRunner | None":
        """What became of the rows of a data set, None where there is none."""

    def progress(self, index: int, tokens: int) -> tuple[int, int | None]:
        """Return how many tokens are done, and of how many; None where nobody knows."""

    def selection(self) -> Mapping[str, Any]:
        """Return what is to be dumped unless options say otherwise."""

    def first(
        self, tokenizer: Any, model: "PreTrainedModel"
    ) -> tuple[Mapping[str, "torch.Tensor"], dict[str, Any]]:
        """Return the first inputs, and what `generate()` takes besides."""

    def each(
        self, model: "PreTrainedModel", tokenizer: Any, on_token: OnToken
    ) -> "Iterator[PromptResult]":
        """Run the model, and yield what became of each run when it is on disk."""


class _Counted:
    """Progress over prompts of which all are known."""

    launch = Launch()
    rows: "RowRunner | None" = None
    tokens: list[int]

    def progress(self, index: int, tokens: int) -> tuple[int, int | None]:
        """Return how many tokens are done, and of how many."""
        each = list(self.launch.share_of(self.tokens))
        return sum(each[:index]) + tokens, sum(each)


class Prompts(_Counted):
    """Prompts from which the model goes on as it likes."""

    def __init__(self, prompts: "list[Prompt]", kwargs: dict[str, Any], *, chat: bool) -> None:
        """Generate with the keyword arguments."""
        self._prompts = prompts
        self._kwargs = kwargs
        self._chat = chat
        self.tokens = [kwargs["max_new_tokens"]] * len(prompts)

    @property
    def asked(self) -> int:
        """How many prompts there are."""
        return len(list(self.launch.share_of(self._prompts)))

    def selection(self) -> Mapping[str, Any]:
        """Return nothing: DumpConfig has defaults."""
        return {}

    def first(
        self, tokenizer: Any, model: "PreTrainedModel"
    ) -> tuple[Mapping[str, "torch.Tensor"], dict[str, Any]]:
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


class Rows:
    """Rows of a data set, of which those that are in the dump already are skipped."""

    launch = Launch()
    rows: "RowRunner | None" = None

    def __init__(
        self, prompts: "PromptRows", kwargs: dict[str, Any], *, batch_size: int, chat: bool
    ) -> None:
        """Take the rows, and what `generate()` takes besides."""
        self._prompts = prompts
        self._kwargs = kwargs
        self._options: dict[str, Any] = {"batch_size": batch_size, "chat": chat}

    @property
    def asked(self) -> int:
        """How many rows there were to be done so far."""
        return 0 if self.rows is None else self.rows.handled - self.rows.skipped

    def selection(self) -> Mapping[str, Any]:
        """Return nothing: DumpConfig has defaults."""
        return {}

    def first(
        self, tokenizer: Any, model: "PreTrainedModel"
    ) -> tuple[Mapping[str, "torch.Tensor"], dict[str, Any]]:
        """Return the first batch as tensors."""
        return self._runner(model, tokenizer).first(self._prompts), dict(self._kwargs)

    def each(
        self, model: "PreTrainedModel", tokenizer: Any, on_token: OnToken
    ) -> "Iterator[PromptResult]":
        """Generate from one batch after the other."""
        from hf_dumper.runner import numbered_rows

        self.rows = self._runner(model, tokenizer, on_token)
        rows = numbered_rows(self._prompts, self.launch.rank, self.launch.size)
        return self.rows.each(rows, self._prompts.name)

    def progress(self, index: int, tokens: int) -> tuple[int, int | None]:
        """Return how many tokens are done, and of how many, without the rows that are skipped."""
        count, each = self._prompts.count, self._kwargs["max_new_tokens"]
        count = count and len(range(self.launch.rank, count, self.launch.size))
        skipped = 0 if self.rows is None else self.rows.skipped
        return (index - skipped) * each + tokens, count and (count - skipped) * each

    def _runner(
        self, model: "PreTrainedModel", tokenizer: Any, on_token: OnToken | None = None
    ) -> "RowRunner":
        from hf_dumper.runner import RowRunner

        options = {"on_progress": on_token, **self._options, **self._kwargs}
        return RowRunner(model, tokenizer, **options)


class Golden(_Counted):
    """Runs of a golden dump, which the model follows token by token."""

    def __init__(self, golden: "DumpReader", runs: "list[GoldenRun]") -> None:
        """Follow the runs; those of the dump that are not among them are missing."""
        self._golden = golden
        self._runs = runs
        self.tokens = [0 if run.ids is None else run.ids.shape[1] for run in runs]

    @property
    def asked(self) -> int:
        """How many runs the golden dump has."""
        return len(list(self.launch.share_of(self._golden.runs())))

    def selection(self) -> Mapping[str, Any]:
        """Return what the golden dump holds."""
        identity = self._golden.manifest.get("identity") or {}
        config = identity.get("dump_config") or {}
        return {name: config[name] for name in _SELECTION if name in config}

    def first(
        self, tokenizer: Any, model: "PreTrainedModel"
    ) -> tuple[Mapping[str, "torch.Tensor"], dict[str, Any]]:
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


def source_of(prompts: PromptOptions, generation: GenerationOptions, seed: int | None) -> Source:
    """Return what the options ask for; `seed` is that of the dump.

    Raises:
        ConfigError: options that contradict each other, or neither prompts nor a dump to follow.
        PromptError: prompts that cannot be read.
    """
    if prompts.follow is not None:
        return _golden(prompts.follow.expanduser(), prompts, generation)
    kwargs = generation.to_kwargs()
    if prompts.prompts is not None and not prompts.prompt:
        return _rows(prompts.prompts, prompts, kwargs, seed or 0)
    idle = [name for name in given(prompts) if name not in ("--prompt", "--prompts", "--chat")]
    if idle and prompts.prompts is None:
        verb = "are" if idle[1:] else "is"
        msg = f"{', '.join(idle)} {verb} about --prompts SOURCE, which is not given."
        raise ConfigError(msg)
    if not prompts.prompt or prompts.prompts is not None:
        msg = "Give either --prompt TEXT, once or several times, or --prompts SOURCE."
        raise ConfigError(msg)
    return _texts(prompts.prompt, kwargs, chat=prompts.chat)


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


def _texts(texts: Sequence[str], kwargs: dict[str, Any], *, chat: bool) -> Prompts:
    from hf_dumper.prompts import Prompt

    return Prompts([Prompt(str(i), text=text) for i, text in enumerate(texts)], kwargs, chat=chat)


def _rows(source: str, options: PromptOptions, kwargs: dict[str, Any], seed: int) -> Rows:
    from hf_dumper.prompts import Selection, open_prompts

    if options.column is not None and options.template is not None:
        msg = "Give either --column or --template, not both."
        raise ConfigError(msg)
    with Work(f"Reading {source}"):
        chosen = Selection(
            options.subset,
            options.split,
            options.streaming,
            seed if options.shuffle else None,
            options.limit,
        )
        columns = {"column": options.column, "template": _unescaped(options.template)}
        prompts = open_prompts(source, chosen, chat=options.chat, **columns)
    return Rows(prompts, kwargs, batch_size=options.batch_size or 1, chat=options.chat)


def _unescaped(template: str | None) -> str | None:
    r"""Turn \n, \t and \\ into what they mean: a shell passes them on as they are typed."""
    meant = {"n": "\n", "t": "\t", "\\": "\\"}
    return template and re.sub(r"\\([nt\\])", lambda match: meant[match[1]], template)
