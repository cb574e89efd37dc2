"""The command line. Commands import what is heavy when they run, so that --help answers at once."""

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import NoReturn


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command that the arguments name, those of the process for None, and exit.

    Of the processes that were launched together only the main one has answers to give.
    """
    from hf_dumper.cli.app import app
    from hf_dumper.cli.failures import status_of
    from hf_dumper.launch import is_main_process

    if is_main_process():
        sys.exit(status_of(app, args))
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        sys.exit(status_of(app, args))
