"""Statistics of large tensors are the same, whether the hook computes them or the writer."""

from collections import Counter

import pytest
import torch

from hf_dumper import DumpConfig, open_dump, register_hook
from hf_dumper.capture import observer
from hf_dumper.capture.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("kind_of_hooks")


def statistics_of(model, folder, mode, *, all_cores, monkeypatch):
    monkeypatch.setattr(observer, "_are_cores_taken", lambda: all_cores)
    with register_hook(model, DumpConfig(folder, "all", dump_statistics_mode=mode)):
        ids = torch.arange(600)[None] % 100
        model.generate(ids, max_new_tokens=2, do_sample=False)
    with open_dump(folder) as dump:
        return dump.index().drop_columns(["shard", "tensor", "offset"])


def test_the_index_is_the_same(tiny_llama, tmp_path, monkeypatch):
    model = tiny_llama()
    there, here, kept = (
        statistics_of(model, tmp_path / name, mode, all_cores=all_cores, monkeypatch=monkeypatch)
        for name, mode, all_cores in (("there", 1, False), ("here", 1, True), ("kept", 2, True))
    )
    assert max(here["nbytes"].to_pylist()) >= 1 << 16
    assert here.equals(there)
    assert here.equals(kept)


def test_bytes_that_are_described_at_once_are_not_copied(tiny_llama, tmp_path, monkeypatch):
    copied = Counter()
    copy = Snapshot._copy

    def watch(snapshot, pointer, nbytes, move):
        copied[snapshot._describe_large] += nbytes >= 1 << 16
        return copy(snapshot, pointer, nbytes, move)

    monkeypatch.setattr(Snapshot, "_copy", watch)
    model = tiny_llama()
    statistics_of(model, tmp_path / "here", 1, all_cores=True, monkeypatch=monkeypatch)
    statistics_of(model, tmp_path / "there", 1, all_cores=False, monkeypatch=monkeypatch)
    assert copied[True] == 0
    assert copied[False] > 0
