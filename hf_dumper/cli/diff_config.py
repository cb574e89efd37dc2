"""`hf-dumper diff-config`: where the settings of two models or dumps differ."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_dumper.cli.failures import DONE, FAILED, one_line
from hf_dumper.cli.model_files import opened
from hf_dumper.cli.options import Json
from hf_dumper.cli.terminal import Work, calm, print_json, stdout

if TYPE_CHECKING:
    from hf_dumper.models.settings import Settings, SettingsDiff

_SIDE = "A model folder, a repository, a dump, or the word demo."


def diff_config(
    golden: Annotated[str, typer.Argument(help=_SIDE, show_default=False)],
    candidate: Annotated[str, typer.Argument(help=_SIDE, show_default=False)],
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the models' own code.")
    ] = False,
    json: Json = False,
) -> int:
    """Show where configurations, tokenizers and environments differ; what changes numbers first."""
    from hf_dumper.models.settings import diff

    with Work("Reading settings"), calm():
        sides = [_settings(name, trust=trust_remote_code) for name in (golden, candidate)]
        found = diff(*sides)
    if json:
        print_json(found.to_dict())
    else:
        _print(found)
    return FAILED if found.differences else DONE


def _settings(name: str, *, trust: bool) -> "Settings":
    from hf_dumper.models.settings import is_dump, settings_of_dump, settings_of_model
    from hf_dumper.store import open_dump

    path = Path(name).expanduser()
    if is_dump(path):
        with open_dump(path) as reader:
            return settings_of_dump(reader)
    with opened(name) as files:
        return settings_of_model(files, trust_remote_code=trust)


def _print(found: "SettingsDiff") -> None:
    show = stdout().print
    numeric = [d for d in found.differences if d.numerics]
    other = [d for d in found.differences if not d.numerics]
    for title, differences in (("changes numbers", numeric), ("other", other)):
        if differences:
            show(f"{title}:")
        for d in differences:
            group = f"{d.group}: " if d.numerics else ""
            show(f"  {group}{d.key}  {_short(d.golden)} / {_short(d.candidate)}", soft_wrap=True)
    n = len(found.differences)
    told = f"{n} of {found.compared} settings differ" if n else f"{found.compared} settings agree"
    show(f"{told}: {found.golden} / {found.candidate}", soft_wrap=True)
    for line in found.not_compared:
        show(f"not compared  {line}", soft_wrap=True)
    for line in found.notes:
        show(f"note          {line}", soft_wrap=True)


def _short(value: Any) -> str:
    return one_line("-" if value is None else str(value), 60)
