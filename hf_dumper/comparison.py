"""Compare two dumps by path, judge a comparison again, save it and load it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from os import PathLike

from hf_dumper.compare import saved
from hf_dumper.compare.comparing import compare_dumps, judge_comparison
from hf_dumper.compare.limits import Limits, load_limits
from hf_dumper.compare.registry import CUSTOM, CustomMetric, Metric, load_metric
from hf_dumper.core.protocols import DumpReader
from hf_dumper.core.verdicts import Comparison
from hf_dumper.errors import NotYetError
from hf_dumper.report.texts import with_texts
from hf_dumper.store import open_dump

Dump = str | PathLike[str] | DumpReader
LimitsLike = str | PathLike[str] | Limits | None


def compare(
    golden: Dump,
    candidate: Dump,
    *,
    floor: Dump | None = None,
    limits: LimitsLike = None,
    metrics: Mapping[str, Metric] | Sequence[str | CustomMetric] | None = None,
) -> Comparison:
    """Compare a candidate with a golden dump: same or not, where first, how sure, why.

    Args:
        golden: The reference, as a path or an open reader; a reader stays open.
        candidate: The dump under test.
        floor: Comes with a later release.
        limits: A TOML file or a mapping that overrides limits of the package; None takes those.
        metrics: The user's own: functions by name, or a list of `file.py:function`, of names of
            the entry-point group `hf_dumper.metrics`, or of `CustomMetric`. None takes all of the
            installed ones.

    Raises:
        DumpNotFoundError: there is no dump at a path.
        DumpFormatError: a dump is damaged.
        ConfigError: limits or metrics that cannot be meant.
        NotYetError: a floor was given.
    """
    if floor is not None:
        msg = "floor comes with a later release; limits are a static table until then."
        raise NotYetError(msg)
    table = load_limits(limits)
    chosen = _metrics(metrics)
    with ExitStack() as stack:
        found = compare_dumps(_opened(golden, stack), _opened(candidate, stack), table, chosen)
        return with_texts(found)


def judge(comparison: Comparison | str | PathLike[str], *, limits: LimitsLike) -> Comparison:
    """Judge a comparison, or a saved one by its folder, under other limits; no tensor is read.

    Raises:
        ConfigError: limits that cannot be meant.
        DumpNotFoundError: there is no saved comparison in the folder.
        DumpFormatError: it is damaged.
    """
    if not isinstance(comparison, Comparison):
        comparison = saved.load(comparison)
    return judge_comparison(comparison, load_limits(limits))


def load_comparison(folder: str | PathLike[str]) -> Comparison:
    """Read a saved comparison.

    Raises:
        DumpNotFoundError: there is none.
        DumpFormatError: it is damaged, or of another version.
    """
    return saved.load(folder)


def _opened(side: Dump, stack: ExitStack) -> DumpReader:
    if isinstance(side, str | PathLike):
        return stack.enter_context(open_dump(side))
    return side


def _metrics(
    given: Mapping[str, Metric] | Sequence[str | CustomMetric] | None,
) -> dict[str, Metric]:
    if given is None:
        return dict(CUSTOM)
    if isinstance(given, Mapping):
        return dict(given)
    loaded = [load_metric(one) if isinstance(one, str) else one for one in given]
    return {metric.name: metric for metric in loaded}
