"""The formats that a comparison can be written in, by the ending of the file."""

from pathlib import Path
from typing import Final

from hf_dumper.core.names import near
from hf_dumper.core.protocols import Reporter
from hf_dumper.core.registry import Registry
from hf_dumper.core.verdicts import Comparison
from hf_dumper.errors import ConfigError, DumpWriteError
from hf_dumper.report.junit import JUnitReporter
from hf_dumper.report.msit import MsitReporter
from hf_dumper.report.tables import CsvReporter, JsonReporter, ParquetReporter

REPORTERS: Final[Registry[Reporter]] = Registry("report", "hf_dumper.reporters")
REPORTERS.register("json")(JsonReporter())
REPORTERS.register("csv")(CsvReporter())
REPORTERS.register("parquet")(ParquetReporter())
REPORTERS.register("xml")(JUnitReporter())
REPORTERS.register("msit.csv")(MsitReporter())


def reporter_for(path: Path) -> Reporter:
    """Return the reporter of a file's ending, the longest that is known.

    Raises:
        ConfigError: there is none.
    """
    endings = [name for name, _ in REPORTERS if path.name.endswith(f".{name}")]
    if not endings:
        known = [name for name, _ in REPORTERS]
        hint = near(path.suffix.removeprefix("."), known) or f" Known: {', '.join(known)}."
        msg = f"Cannot tell from the ending of {str(path)!r} what kind of report it is.{hint}"
        raise ConfigError(msg)
    return REPORTERS.get(max(endings, key=len))


def write_report(comparison: Comparison, path: Path) -> None:
    """Write a comparison in the format that the ending of the file says.

    Raises:
        ConfigError: no format has that ending.
        DumpWriteError: the file cannot be written.
    """
    reporter = reporter_for(path)
    try:
        reporter.write(comparison, path)
    except OSError as error:
        if error.strerror is None:  # one of ours, about a dump
            raise
        msg = f"Cannot write {str(path)!r}: {error.strerror}."
        raise DumpWriteError(msg) from error
