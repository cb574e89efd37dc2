"""What the guards count with: operators, methods, chunks and calls of the operating system."""

import functools
import mmap
import os
import threading
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_dumper import DumpConfig, register_hook
from hf_dumper.core.arena import Arena

MODES = {
    "tensors": {"dump_statistics_mode": 0},
    "statistics": {"dump_statistics_mode": 1},
    "both": {"dump_statistics_mode": 2},
    "last logits": {"dump_last_logits": True},
}
HEAVY = {"vocab_size": 1 << 13}
"""A head that is a long kernel, so that batches leave before it."""

LARGE = 1 << 16
"""Bytes from which an alias must not be copied."""


def generate(model, tokens=3, columns=7, **options):
    ids = torch.arange(5, 5 + columns)[None] % 100
    return model.generate(ids, max_new_tokens=tokens, do_sample=False, **options)


def dump(model, path, run=generate, **options):
    """Dump every token of what `run` does with the model; return the folder."""
    with register_hook(model, DumpConfig(path, "all", **options)):
        run(model)
    return path


class Operators(TorchDispatchMode):
    """Counts the operators that this thread dispatches."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def counted(monkeypatch, target, name, counts, *, of_this_thread=False):
    """Count the calls of a function or method under its name."""
    real, thread = getattr(target, name), threading.get_ident()

    @functools.wraps(real)
    def call(*args, **kwargs):
        if not of_this_thread or threading.get_ident() == thread:
            counts[name] += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(target, name, call)


class Mappings:
    """Counts the anonymous memory that Python code maps, and how much of it lives at once."""

    def __init__(self, monkeypatch):
        self.sizes, self.live, self.peak = [], 0, 0
        seen, lock = self, threading.RLock()  # a finalizer may run inside `__init__`

        def change(nbytes):
            with lock:
                seen.live += nbytes
                seen.peak = max(seen.peak, seen.live)

        class Counted(mmap.mmap):
            def __init__(self, fileno, length, *_args, **_kwargs):
                self.gone = weakref.finalize(self, change, -length if fileno == -1 else 0)
                self.gone.atexit = False
                if fileno == -1:
                    seen.sizes.append(length)
                    change(length)

            def close(self):
                super().close()
                self.gone()

        monkeypatch.setattr(mmap, "mmap", Counted)


class SpyArena(Arena):
    """An arena that sees how far each of its chunks was filled, and how much was in flight.

    Attributes:
        marks: Bytes of each chunk given back, up to the last one that was written.
        peak: Most bytes in flight.
        when_full: Called when a chunk is asked for that has to wait.
        when_taken: Called when a chunk is there.
    """

    FILL = 0xA5

    def __init__(self, chunk_bytes=1 << 20, max_bytes=4 << 20):
        super().__init__(chunk_bytes, max_bytes)
        self.chunk_bytes, self.max_bytes = chunk_bytes, max_bytes
        self.marks, self.peak = [], 0
        self.when_full = self.when_taken = lambda: None

    def take(self, nbytes):
        """Tell who may be waited for, then take a chunk and fill it with what nobody wrote."""
        size = max(self.chunk_bytes, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE)
        if self.bytes_in_flight and self.bytes_in_flight + size > self.max_bytes:
            self.when_full()
        chunk = super().take(nbytes)
        self.when_taken()
        self.peak = max(self.peak, self.bytes_in_flight)
        np.frombuffer(chunk.memory, np.uint8)[:] = self.FILL
        return chunk

    def release(self, chunk):
        written = np.flatnonzero(np.frombuffer(chunk.memory, np.uint8) != self.FILL)
        self.marks.append(int(written[-1]) + 1 if written.size else 0)
        super().release(chunk)

    def use(self, monkeypatch):
        """Give this arena to every dump that is made from now on."""
        monkeypatch.setattr("hf_dumper.session.model_dump.Arena", lambda: self)
        return self


class Writes:
    """Counts what is written into each file that is opened by `os.open`."""

    def __init__(self, monkeypatch):
        self.calls, self.bytes, self.flags = Counter(), Counter(), {}
        names, real_open, real_write = {}, os.open, os.pwrite

        def open_file(path, flags, *args, **kwargs):
            fd = real_open(path, flags, *args, **kwargs)
            names[fd] = Path(path).name
            self.flags[names[fd]] = flags
            return fd

        def write(fd, data, place):
            written = real_write(fd, data, place)
            self.calls[names[fd]] += 1
            self.bytes[names[fd]] += written
            return written

        monkeypatch.setattr(os, "open", open_file)
        monkeypatch.setattr(os, "pwrite", write)
