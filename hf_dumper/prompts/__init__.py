"""Prompts: read from data sets or dumps, and turned into what a model takes."""

from hf_dumper.prompts.encode import encode, pad
from hf_dumper.prompts.files import SUFFIXES
from hf_dumper.prompts.golden import GoldenRun, golden_runs
from hf_dumper.prompts.prompt import Messages, Prompt
from hf_dumper.prompts.source import PromptRow, PromptRows, load_prompts, open_prompts
from hf_dumper.prompts.table import Selection

__all__ = [
    "SUFFIXES",
    "GoldenRun",
    "Messages",
    "Prompt",
    "PromptRow",
    "PromptRows",
    "Selection",
    "encode",
    "golden_runs",
    "load_prompts",
    "open_prompts",
    "pad",
]
