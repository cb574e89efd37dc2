"""Records to files and back: sinks that write a dump, and readers of our layouts."""

from hf_dumper.store.background import BackgroundSink
from hf_dumper.store.directory import DirectorySink
from hf_dumper.store.memory import KeptRecord, MemorySink
from hf_dumper.store.msit import MsitSink
from hf_dumper.store.msit_reader import MsitReader
from hf_dumper.store.open import READERS, ReaderType, open_dump
from hf_dumper.store.reader import NativeReader

__all__ = [
    "READERS",
    "BackgroundSink",
    "DirectorySink",
    "KeptRecord",
    "MemorySink",
    "MsitReader",
    "MsitSink",
    "NativeReader",
    "ReaderType",
    "open_dump",
]
