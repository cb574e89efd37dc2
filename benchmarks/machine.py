"""What the figures were measured on: nothing that names the machine, all that explains it."""

import os
import platform
import re
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_dumper.capture import taps
from hf_dumper.core import sums


def machine() -> dict[str, Any]:
    """Return processor, cores, versions, file system and date, JSON-ready."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "file_system": _file_system(Path(tempfile.gettempdir())),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "hf_dumper")},
        "compiled": taps.COMPILED and sums.COMPILED,
    }


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor()
    found = re.search(r"model name\s*: (.*)", text)
    return found[1] if found else platform.machine()


def _file_system(folder: Path) -> str | None:
    """Return the type of the file system that holds a folder: that of the longest mount point."""
    try:
        lines = Path("/proc/mounts").read_text("utf-8").splitlines()
    except OSError:
        return None
    mounts = {Path(line.split()[1]): line.split()[2] for line in lines}
    real = folder.resolve()
    return next((mounts[place] for place in (real, *real.parents) if place in mounts), None)
