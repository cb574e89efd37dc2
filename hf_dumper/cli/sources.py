"""What a model is to generate from: prompts, a data set, or the runs of a golden dump."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

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
        unit: What they are called when they are counted.
    """

    launch: Launch
    unit: str

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the prompts are, as all processes of the launch must find it."""

    @property
    def asked(self) -> int:
        """How many prompts were asked for; of a data set, those that were not done before."""

    @property
    def rows(self) -> "RowRunner | None":
        """What became of the rows of a data set, None where there is none."""

    def progress(self, index: int, tokens: int) -> tuple[float, int | None]:
        """Return how many prompts are done, and of how many; None where nobody knows.

        `index` are behind us, and there are so many tokens of what comes next.
        """

    def prepare(self, model: "PreTrainedModel", tokenizer: Any, on_token: OnToken) -> None:
        """Look at what the dump holds, before any process of the launch adds to it."""

    def selection(self) -> Mapping[str, Any]:
        """Return what is to be dumped unless options say otherwise."""

    def first(
        self, tokenizer: Any, model: "PreTrainedModel"
    ) -> tuple[Mapping[str, "torch.Tensor"], dict[str, Any]]:
        """Return the first inputs, and what `generate()` takes besides."""

    def each(
        self, model: "PreTrainedModel", tokenizer: Any, on_token: OnToken
    ) -> "Iterator[PromptResult]":
        """Run the prepared model, and yield what became of each run when it is on disk."""


class _Counted:
    """Progress over prompts of which all are known."""

    launch = Launch()
    rows: "RowRunner | None" = None
    unit = "prompts"
    tokens: list[int]

    @property
    def facts(self) -> Mapping[str, Any]:
        """How many tokens each has."""
        return {"tokens": self.tokens}

    def progress(self, index: int, tokens: int) -> tuple[float, int | None]:
        """Return how many are done, and of how many; of a part, by its tokens."""
        each = list(self.launch.share_of(self.tokens))
        return index + (tokens / each[index] if tokens else 0), len(each)

    def prepare(self, model: "PreTrainedModel", tokenizer: Any, on_token: OnToken) -> None:
        """Do nothing: whatever is there stays."""


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
    unit = "rows"

    def __init__(
        self, prompts: "PromptRows", kwargs: dict[str, Any], *, batch_size: int, chat: bool
    ) -> None:
        """Take the rows, and what `generate()` takes besides."""
        self._prompts = prompts
        self._kwargs = kwargs
        self._options: dict[str, Any] = {"batch_size": batch_size, "chat": chat}

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the rows are, and how many."""
        return {**self._prompts.facts, "rows": self._prompts.count}

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

        rows = numbered_rows(self._prompts, self.launch.rank, self.launch.size)
        return self._ready().each(rows, self._prompts.name, self._prompts.facts)

    def prepare(self, model: "PreTrainedModel", tokenizer: Any, on_token: OnToken) -> None:
        """Read which rows the dump holds."""
        self.rows = self._runner(model, tokenizer, on_token)
        self.rows.prepare()

    def progress(self, index: int, tokens: int) -> tuple[float, int | None]:
        """Return how many rows are done, and of how many, without those that are skipped."""
        count, each = self._prompts.count, self._kwargs["max_new_tokens"]
        count = count and len(range(self.launch.rank, count, self.launch.size))
        skipped = 0 if self.rows is None else self.rows.skipped
        return index - skipped + tokens / each, count and count - skipped

    def _ready(self) -> "RowRunner":
        return cast("RowRunner", self.rows)

    def _runner(
        self, model: "PreTrainedModel", tokenizer: Any, on_token: OnToken | None = None
    ) -> "RowRunner":
        from hf_dumper.runner import RowRunner

        options = {"on_progress": on_token, **self._options, **self._kwargs}
        return RowRunner(model, tokenizer, **options)


class Golden(_Counted):
    """Runs of a golden dump, which the model follows token by token."""

    unit = "runs"

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
