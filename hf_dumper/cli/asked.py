"""What the options of a command ask for: prompts, a data set, or a golden dump to follow."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_dumper.cli.options import GenerationOptions, PromptOptions, given
from hf_dumper.cli.sources import Golden, Prompts, Rows, Source
from hf_dumper.cli.terminal import Work
from hf_dumper.errors import ConfigError

if TYPE_CHECKING:
    from hf_dumper.config import DumpConfig


def source_of(
    prompts: PromptOptions, generation: GenerationOptions, config: "DumpConfig"
) -> Source:
    """Return what the options ask for, to be dumped as `config` says.

    Raises:
        ConfigError: options that contradict each other, or neither prompts nor a dump to follow.
        PromptError: prompts that cannot be read.
    """
    if prompts.follow is not None:
        return _golden(prompts.follow.expanduser(), prompts, generation)
    kwargs = generation.to_kwargs()
    if prompts.prompts is not None and not prompts.prompt:
        return _rows(prompts.prompts, prompts, kwargs, config)
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


def _rows(
    source: str, options: PromptOptions, kwargs: dict[str, Any], config: "DumpConfig"
) -> Rows:
    from hf_dumper.prompts import Selection, open_prompts

    if options.column is not None and options.template is not None:
        msg = "Give either --column or --template, not both."
        raise ConfigError(msg)
    with Work(f"Reading {source}"):
        chosen = Selection(
            options.subset,
            options.split,
            options.streaming,
            (config.seed or 0) if options.shuffle else None,
            options.limit,
            options.prompts_revision or _revision_there(source, config),
        )
        columns = {"column": options.column, "template": _unescaped(options.template)}
        prompts = open_prompts(source, chosen, chat=options.chat, **columns)
    return Rows(prompts, kwargs, batch_size=options.batch_size or 1, chat=options.chat)


def _revision_there(source: str, config: "DumpConfig") -> str | None:
    """Return the commit with which a dump was begun, for the hub's branch may have moved since."""
    from hf_dumper.runner import recorded_revision

    if config.overwrite or config.dump_path is None:
        return None
    return recorded_revision(Path(config.dump_path).expanduser(), source)


def _unescaped(template: str | None) -> str | None:
    r"""Turn \n, \t and \\ into what they mean: a shell passes them on as they are typed."""
    meant = {"n": "\n", "t": "\t", "\\": "\\"}
    return template and re.sub(r"\\([nt\\])", lambda match: meant[match[1]], template)
