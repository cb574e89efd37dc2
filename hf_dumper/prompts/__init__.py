"""Prompts: read from files, and turned into what a model takes."""

from hf_dumper.prompts.encode import encode
from hf_dumper.prompts.files import SUFFIXES, load_prompts
from hf_dumper.prompts.prompt import Messages, Prompt

__all__ = ["SUFFIXES", "Messages", "Prompt", "encode", "load_prompts"]
