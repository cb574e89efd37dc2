"""Sessions: the only package that knows both capture and store."""

from hf_dumper.session.session import DumpSession

__all__ = ["DumpSession"]
