"""`hf-dumper verify`: whether a dump is what was written, and whether the model still makes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from hf_dumper.cli.failures import DONE, FAILED, IMPOSSIBLE
from hf_dumper.cli.flat import flat
from hf_dumper.cli.options import Dump, Json, ModelOptions
from hf_dumper.cli.terminal import Work, calm, print_json, stdout
from hf_dumper.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from hf_dumper.diagnose.rerun import Rerun
    from hf_dumper.store.findings import Verification

_STATUS: Final = {
    "intact": DONE,
    "damaged": FAILED,
    "incomplete": FAILED,
    "unchecked": IMPOSSIBLE,
    "equal": DONE,
    "differs": FAILED,
    "not repeated": IMPOSSIBLE,
}
_STYLES: Final = {
    "intact": "bold green",
    "equal": "bold green",
    "damaged": "bold red",
    "differs": "bold red",
}


@dataclass(frozen=True)
class Again:
    """Whether and how the model is run again."""

    rerun: Annotated[
        bool, typer.Option("--rerun", help="Run the model again, and compare every bit.")
    ] = False
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model, if it is elsewhere than it was."),
    ] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model's own code.")
    ] = False


@flat
def verify(dump: Dump, again: Again, json: Json = False) -> int:
    """Check every file of a dump; with --rerun also that the model still gives these very bits."""
    if not again.rerun and (again.model or again.trust_remote_code):
        msg = "--model and --trust-remote-code are about --rerun, which is not given."
        raise ConfigError(msg)
    path = dump.expanduser()
    verification = check_files(path)
    status = _STATUS[verification.verdict]
    facts = verification.to_dict()
    if not json:
        tell_files(verification)
    if again.rerun and verification.verdict == "damaged":
        if not json:
            stdout().print("not run again: the dump is damaged", soft_wrap=True)
    elif again.rerun:
        rerun = run_again(path, again)
        facts["rerun"] = rerun.to_dict()
        # What could not be hashed is made again, and then compared by its hash.
        if status != FAILED:
            status = _STATUS[rerun.verdict]
        if not json:
            tell_rerun(rerun)
    if json:
        print_json(facts)
    return status


def check_files(path: Path) -> "Verification":
    """Verify the files of a dump under a progress bar."""
    from hf_dumper.store.verify import verify_dump

    with Work(f"Verifying {path}") as work:
        return verify_dump(path, on_progress=work.update)


def run_again(path: Path, again: Again) -> "Rerun":
    """Load the model as it was loaded for the dump, and repeat its runs.

    Raises:
        ModelError: it is not where it was, and no other place is given.
    """
    from hf_dumper.cli.models import load_weights
    from hf_dumper.store.manifest import read_manifest

    manifest = read_manifest(path)
    name = again.model or manifest.get("model")
    if not name:
        msg = "The dump does not say where its model is. Name it with --model."
        raise ModelError(msg)
    options, more = _as_loaded(manifest, trust=again.trust_remote_code)
    try:
        model = load_weights(str(name), options, **more)
    except ModelError as error:
        if not again.model:
            error.add_note("The dump names that place; --model says where the model is now.")
        raise
    with Work(f"Repeating the runs of {path}"), calm():
        from hf_dumper.diagnose.rerun import rerun

        return rerun(path, model)


def _as_loaded(manifest: dict[str, Any], *, trust: bool) -> tuple[ModelOptions, dict[str, Any]]:
    identity = manifest.get("identity") or {}
    dtype = str(identity.get("dtype")).removeprefix("torch.")
    options = ModelOptions(
        dtype=None if dtype == "None" else dtype,
        attn_implementation=identity.get("attn_implementation"),
        trust_remote_code=trust,
    )
    placed = identity.get("device_map") or {}
    more = {
        "experts_implementation": identity.get("experts_implementation"),
        "device_map": {n: int(d) if d.isdecimal() else d for n, d in placed.items()} or None,
    }
    return options, {name: value for name, value in more.items() if value is not None}


def tell_files(verification: "Verification") -> None:
    """Print a verdict about the files and what it rests on."""
    from hf_dumper.report.verification import opening, verification_lines

    _tell(verification.verdict, opening(verification), list(verification_lines(verification)))


def tell_rerun(rerun: "Rerun") -> None:
    """Print a verdict about the model and what it rests on."""
    lines = [f"changed: {change}" for change in rerun.changed]
    for again in rerun.runs:
        if again.records is None:
            lines.append(f"run {again.run}: not repeated: {again.why_not}")
            continue
        lines += [f"run {again.run}: changed: {change}" for change in again.changed]
        count = again.records
        lines.append(f"run {again.run}: {count.equal:,} of {count.records:,} records are the same")
        if count.unchecked:
            lines.append(f"run {again.run}: {count.unchecked:,} records have no hash to compare")
        if count.difference:
            lines.append(f"run {again.run}: first difference: {count.difference}")
        if not again.tokens_equal:
            lines.append(f"run {again.run}: other tokens were generated")
    _tell(rerun.verdict, _REPEATED[rerun.verdict], lines)


_REPEATED: Final = {
    "equal": "run again, the model gives the same records and tokens, bit for bit",
    "differs": "run again, the model does not give the same bits",
    "not repeated": "not all runs could be repeated and compared",
}


def _tell(verdict: str, sentence: str, lines: list[str]) -> None:
    console = stdout()
    head = Text(verdict.upper(), _STYLES.get(verdict, "bold yellow"))
    console.print(head.append(f"  {sentence}", "default"), soft_wrap=True)
    for line in lines:
        console.print(line, soft_wrap=True)
