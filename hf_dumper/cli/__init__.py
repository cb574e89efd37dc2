"""The command line. Commands import what is heavy when they run, so that --help answers at once."""

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command that the arguments name, those of the process for None, and exit."""
    from hf_dumper.cli.app import app
    from hf_dumper.cli.failures import status_of

    sys.exit(status_of(app, args))
