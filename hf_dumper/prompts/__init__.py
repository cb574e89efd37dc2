"""Prompts: read from files or dumps, and turned into what a model takes."""

from hf_dumper.prompts.encode import encode
from hf_dumper.prompts.files import SUFFIXES, load_prompts
from hf_dumper.prompts.golden import GoldenRun, golden_runs
from hf_dumper.prompts.prompt import Messages, Prompt

__all__ = [
    "SUFFIXES",
    "GoldenRun",
    "Messages",
    "Prompt",
    "encode",
    "golden_runs",
    "load_prompts",
]
