"""Options that several commands share, as dataclasses: typer sees one option for each field."""

from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from hf_dumper.cli.sizes import parse_size
from hf_dumper.core.json_object import json_object
from hf_dumper.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hf_dumper.config import DumpConfig

_DUMP = "What to dump"
_MODEL = "The model"
_GENERATION = "Generation"
_PROMPTS = "Prompts"

Names = list[str] | None


MAX_NEW_TOKENS = 16


class Kept(StrEnum):
    """What is kept of each tensor; the order is that of `dump_statistics_mode`."""

    tensors = "tensors"
    statistics = "statistics"
    both = "both"


class OnError(StrEnum):
    """What an error of the dump does."""

    warn = "warn"
    stop = "raise"


@dataclass(frozen=True)
class PromptOptions:
    """Where the prompts come from."""

    prompt: Annotated[
        Names, Option(help="A prompt; may be given several times.", rich_help_panel=_PROMPTS)
    ] = None
    prompts: Annotated[
        str | None,
        Option(
            metavar="SOURCE",
            help="Prompts from .txt (a line each), .json, .jsonl, .csv or .parquet, a folder of "
            "data, or a data set of the hub. A second start goes on where the first ended.",
            rich_help_panel=_PROMPTS,
        ),
    ] = None
    column: Annotated[
        str | None,
        Option(
            help="Column of SOURCE.", show_default='"prompt" or "text"', rich_help_panel=_PROMPTS
        ),
    ] = None
    template: Annotated[
        str | None,
        Option(
            help=r'Several columns of SOURCE, such as "Q: {question}\nA:".',
            rich_help_panel=_PROMPTS,
        ),
    ] = None
    subset: Annotated[
        str | None,
        Option(help="Configuration of a data set of the hub.", rich_help_panel=_PROMPTS),
    ] = None
    prompts_revision: Annotated[
        str | None,
        Option(
            help="Branch, tag or commit of a data set of the hub.",
            show_default="that of the runs in the dump",
            rich_help_panel=_PROMPTS,
        ),
    ] = None
    split: Annotated[
        str | None,
        Option(help='Split of SOURCE, such as "train[1:3]".', rich_help_panel=_PROMPTS),
    ] = None
    streaming: Annotated[
        bool,
        Option("--streaming", help="Read SOURCE row by row.", rich_help_panel=_PROMPTS),
    ] = False
    limit: Annotated[
        int | None, Option(min=1, help="Rows of SOURCE at most.", rich_help_panel=_PROMPTS)
    ] = None
    shuffle: Annotated[
        bool,
        Option(
            "--shuffle",
            help="Take the rows in an order drawn from --seed, 0 unless given.",
            rich_help_panel=_PROMPTS,
        ),
    ] = False
    batch_size: Annotated[
        int | None,
        Option(
            min=1, help="Rows of SOURCE in each run.", show_default="1", rich_help_panel=_PROMPTS
        ),
    ] = None
    follow: Annotated[
        Path | None,
        Option(
            metavar="GOLDEN",
            help="Take prompts and tokens from this dump, and dump what it holds.",
            rich_help_panel=_PROMPTS,
        ),
    ] = None
    chat: Annotated[
        bool,
        Option("--chat", help="Use the tokenizer's chat template.", rich_help_panel=_PROMPTS),
    ] = False


@dataclass(frozen=True)
class ModelOptions:
    """How the model is loaded."""

    dtype: Annotated[
        str | None, Option(help="float32, bfloat16, float16, auto...", rich_help_panel=_MODEL)
    ] = None
    attn_implementation: Annotated[
        str | None, Option(help="eager, sdpa, flash_attention_2...", rich_help_panel=_MODEL)
    ] = None
    device_map: Annotated[
        str | None, Option(help="cpu, cuda, npu, auto...", rich_help_panel=_MODEL)
    ] = None
    revision: Annotated[
        str | None, Option(help="Branch, tag or commit on the hub.", rich_help_panel=_MODEL)
    ] = None
    trust_remote_code: Annotated[
        bool,
        Option("--trust-remote-code", help="Run the model's own code.", rich_help_panel=_MODEL),
    ] = False


@dataclass(frozen=True)
class GenerationOptions:
    """How tokens are chosen."""

    max_new_tokens: Annotated[
        int | None,
        Option(
            min=1,
            help="Tokens to generate at most.",
            show_default=str(MAX_NEW_TOKENS),
            rich_help_panel=_GENERATION,
        ),
    ] = None
    do_sample: Annotated[
        bool, Option("--do-sample", help="Draw tokens at random.", rich_help_panel=_GENERATION)
    ] = False
    temperature: Annotated[float | None, Option(rich_help_panel=_GENERATION)] = None
    top_k: Annotated[int | None, Option(rich_help_panel=_GENERATION)] = None
    top_p: Annotated[float | None, Option(rich_help_panel=_GENERATION)] = None

    def to_kwargs(self) -> dict[str, Any]:
        """Return what `generate()` takes.

        Raises:
            ConfigError: an option of sampling without sampling, which would do nothing.
        """
        kwargs = {f.name: getattr(self, f.name) for f in fields(self)}
        idle = [n for n in given(self) if n in ("--temperature", "--top-k", "--top-p")]
        if idle and not self.do_sample:
            names = ", ".join(idle)
            msg = f"{names}: without --do-sample the likeliest token is taken. Add --do-sample."
            raise ConfigError(msg)
        kwargs["max_new_tokens"] = self.max_new_tokens or MAX_NEW_TOKENS
        return {name: value for name, value in kwargs.items() if value is not None}


@dataclass(frozen=True)
class DumpOptions:
    """The fields of DumpConfig; None means that the option was not given."""

    dump_path: Annotated[
        Path | None,
        Option(
            "--dump",
            "--dump-path",
            metavar="FOLDER",
            help="Where to.",
            show_default="hf_dump_<time>",
            rich_help_panel=_DUMP,
        ),
    ] = None
    token_range: Annotated[
        str | None,
        Option(
            help='Tokens, such as "0-3,8" or "all".',
            show_default="0, the prefill",
            rich_help_panel=_DUMP,
        ),
    ] = None
    statistics: Annotated[
        Kept | None,
        Option(
            metavar="KIND",
            help="tensors, statistics or both.",
            show_default="tensors",
            rich_help_panel=_DUMP,
        ),
    ] = None
    layer_name: Annotated[
        Names,
        Option(
            metavar="NAME",
            help='Modules by name, such as "model.layers.*.mlp"; may be repeated.',
            rich_help_panel=_DUMP,
        ),
    ] = None
    module_list: Annotated[
        Names,
        Option(
            metavar="CLASS",
            help="Modules by class, such as Linear; may be repeated.",
            rich_help_panel=_DUMP,
        ),
    ] = None
    tensor_part: Annotated[
        int | None,
        Option(
            metavar="0|1|2",
            help="0 inputs, 1 outputs, 2 both.",
            show_default="2",
            rich_help_panel=_DUMP,
        ),
    ] = None
    device_id: Annotated[
        int | None, Option(help="Only what lies on this accelerator.", rich_help_panel=_DUMP)
    ] = None
    dump_last_logits: Annotated[
        bool | None,
        Option(
            "--dump-last-logits",
            help="Only logits, scores and chosen ids.",
            rich_help_panel=_DUMP,
        ),
    ] = None
    dump_weight: Annotated[
        bool | None,
        Option("--dump-weight", help="Parameters and buffers, too.", rich_help_panel=_DUMP),
    ] = None
    analyze: Annotated[
        bool | None,
        Option(
            "--analyze", help="A table of every tensor, tensor_analyze.csv.", rich_help_panel=_DUMP
        ),
    ] = None
    layout: Annotated[
        str | None,
        Option(
            metavar="KIND", help="native or msit.", show_default="native", rich_help_panel=_DUMP
        ),
    ] = None
    dump_kv_cache: Annotated[
        bool | None,
        Option(
            "--dump-kv-cache",
            help="Keys, values and states that each token adds to the cache.",
            rich_help_panel=_DUMP,
        ),
    ] = None
    seed: Annotated[
        int | None, Option(help="Compute deterministically from it.", rich_help_panel=_DUMP)
    ] = None
    overwrite: Annotated[
        bool | None,
        Option(
            "--overwrite",
            help="Replace another dump in FOLDER.",
            rich_help_panel=_DUMP,
        ),
    ] = None
    max_bytes: Annotated[
        int | None,
        Option(
            metavar="SIZE",
            parser=parse_size,
            help="Most that the dump may take on disk, such as 500MB.",
            show_default="no bound",
            rich_help_panel=_DUMP,
        ),
    ] = None
    on_error: Annotated[
        OnError | None,
        Option(
            metavar="warn|raise",
            help="When the dump cannot be written: go on without it, or stop.",
            show_default="warn",
            rich_help_panel=_DUMP,
        ),
    ] = None
    durable: Annotated[
        bool | None,
        Option("--durable", help="Wait for the disk after each run.", rich_help_panel=_DUMP),
    ] = None
    no_hash_weights: Annotated[
        bool,
        Option(
            "--no-hash-weights",
            help="Save time: do not hash the weights into the manifest.",
            rich_help_panel=_DUMP,
        ),
    ] = False
    config: Annotated[
        Path | None,
        Option(
            metavar="FILE.json",
            help="Fields of DumpConfig; options win over it.",
            rich_help_panel=_DUMP,
        ),
    ] = None
    # Documented options of later releases: taken, so that DumpConfig can say so, but not listed.
    mode: Annotated[Names, Option(hidden=True)] = None
    api_list: Annotated[Names, Option(hidden=True)] = None
    # A model that a command loads is not compiled, so there is nothing to allow.
    allow_eager: Annotated[bool | None, Option(hidden=True)] = None

    def to_config(self, default: "Mapping[str, Any] | None" = None) -> "DumpConfig":
        """Return the configuration: the default, then what the file says, then the options.

        Raises:
            ConfigError: the file cannot be read, or a value cannot be meant.
        """
        from hf_dumper.config import DumpConfig

        options = {f.name: getattr(self, f.name) for f in fields(self)}
        file = options.pop("config")
        kept = options.pop("statistics")
        if self.on_error is not None:
            options["on_error"] = self.on_error.value
        options["hash_weights"] = False if options.pop("no_hash_weights") else None
        values = dict(default or {})
        values |= _read_json(file) if file is not None else {}
        values |= {name: value for name, value in options.items() if value not in (None, [])}
        if kept is not None:
            values["dump_statistics_mode"] = list(Kept).index(kept)
        return DumpConfig.from_dict(values)


def given(options: Any) -> list[str]:
    """Return the options of a group that were given, as they are typed."""
    values = {f.name: getattr(options, f.name) for f in fields(options)}
    return [f"--{n.replace('_', '-')}" for n, v in values.items() if v not in (None, False, [])]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json_object(path.read_bytes())
    except OSError as error:
        msg = f"Cannot read {str(path)!r}: {error.strerror}."
        raise ConfigError(msg) from error
    except ValueError as error:
        msg = f"{path} {error}. Write it as DumpConfig.to_dict() does."
        raise ConfigError(msg) from error


Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Dump = Annotated[Path, typer.Argument(help="Folder of the dump.", show_default=False)]
