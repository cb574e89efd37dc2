"""`hf-dumper verify`: whether a dump is what was written, and whether the model still makes it."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.text import Text

from hf_dumper.cli.failures import DONE, FAILED, IMPOSSIBLE
from hf_dumper.cli.options import Dump, Json
from hf_dumper.cli.terminal import Work, print_json, stdout

if TYPE_CHECKING:
    from hf_dumper.store.findings import Verification

_STATUS: Final = {
    "intact": DONE,
    "damaged": FAILED,
    "incomplete": FAILED,
    "unchecked": IMPOSSIBLE,
}
_STYLES: Final = {"intact": "bold green", "damaged": "bold red"}


def verify(dump: Dump, json: Json = False) -> int:
    """Check every file of a dump: hashes, headers, indexes and counts."""
    verification = check_files(dump.expanduser())
    if json:
        print_json(verification.to_dict())
    else:
        tell_files(verification)
    return _STATUS[verification.verdict]


def check_files(path: Path) -> "Verification":
    """Verify the files of a dump under a progress bar."""
    from hf_dumper.store.verify import verify_dump

    with Work(f"Verifying {path}") as work:
        return verify_dump(path, on_progress=work.update)


def tell_files(verification: "Verification") -> None:
    """Print a verdict and what it rests on."""
    from hf_dumper.report.verification import opening, verification_lines

    console = stdout()
    verdict = verification.verdict
    head = Text(verdict.upper(), _STYLES.get(verdict, "bold yellow"))
    console.print(head.append(f"  {opening(verification)}", "default"), soft_wrap=True)
    for line in verification_lines(verification):
        console.print(line, soft_wrap=True)
