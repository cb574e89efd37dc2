"""Prompts, rows of data sets, or runs of a golden dump through a dumped model."""

from hf_dumper.runner.failures import RowFailure
from hf_dumper.runner.finished import recorded_revision
from hf_dumper.runner.prompts import (
    OnToken,
    PromptResult,
    can_generate,
    dump_golden,
    dump_prompts,
    each_golden,
    each_prompt,
)
from hf_dumper.runner.rows import RowRunner, dump_rows, numbered_rows

__all__ = [
    "OnToken",
    "PromptResult",
    "RowFailure",
    "RowRunner",
    "can_generate",
    "dump_golden",
    "dump_prompts",
    "dump_rows",
    "each_golden",
    "each_prompt",
    "numbered_rows",
    "recorded_revision",
]
