"""Bad cases: prompts of an evaluation on which two models were judged unlike, and why."""

from hf_dumper.badcases.cases import BadCase, BadCases, find_cases
from hf_dumper.badcases.explain import Explained, dump_cases, explain
from hf_dumper.badcases.results import Columns, Result, Results, read_results
from hf_dumper.badcases.texts import TextMetrics, compare_texts

__all__ = [
    "BadCase",
    "BadCases",
    "Columns",
    "Explained",
    "Result",
    "Results",
    "TextMetrics",
    "compare_texts",
    "dump_cases",
    "explain",
    "find_cases",
    "read_results",
]
