"""Forked processes, other processes, and sessions in threads: each dump is its owner's alone."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader

from hf_dumper import DumpConfig, DumpWriteError, open_dump, register_hook
from hf_dumper.store.layout import LOCK
from hf_dumper.store.lock import lock_dump
from tests.faults import facts, generate, is_plain, readable_forwards

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
TOKENS = 6


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


def forked(act):
    """Call `act` in a forked process; return its exit status."""
    child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(20)
            torch.set_num_threads(1)
            status = act() or 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dumped(path, run=0):
    """Return every hash of a run by key."""
    with open_dump(path) as reader:
        columns = ["forward", "module", "slot", "call", "hash"]
        return reader.index(run).select(columns).to_pylist()


def leave(session):
    session.close()
    session.__exit__(None, None, None)


CHILDREN = {
    "exits at once": lambda model, session: 0,
    "closes the session": lambda model, session: leave(session),
    "generates": lambda model, session: generate(model, 2).shape[1] - 9,
}


@pytest.mark.parametrize("child", CHILDREN)
@pytest.mark.parametrize("forward", [0, 3])
def test_a_fork_in_the_middle_of_a_generation(model, tmp_path, child, forward):
    with register_hook(model, DumpConfig(tmp_path / "want", "all")):
        want = generate(model, TOKENS)
    session = register_hook(model, DumpConfig(tmp_path / "got", "all"))
    seen, statuses = [], []

    def hook(*_):
        seen.append(1)
        if len(seen) == forward + 1:
            statuses.append(forked(lambda: CHILDREN[child](model, session)))

    handle = model.model.layers[1].register_forward_hook(hook)
    got = generate(model, TOKENS)
    handle.remove()
    session.close()
    assert statuses == [0]
    assert torch.equal(got, want)
    assert facts(tmp_path / "got")["complete"]
    assert dumped(tmp_path / "got") == dumped(tmp_path / "want")
    assert readable_forwards(tmp_path / "got") == list(range(TOKENS))


def test_a_child_that_goes_on_with_the_generation_has_no_part_in_the_dump(model, tmp_path):
    parent = os.getpid()
    session = register_hook(model, DumpConfig(tmp_path, "all", seed=1))
    want = generate(model, TOKENS)
    children = []

    def hook(*_):
        if not children and os.getpid() == parent:
            children.append(os.fork())
            torch.set_num_threads(1)

    handle = model.model.layers[1].register_forward_hook(hook)
    try:
        got = generate(model, TOKENS)
        if os.getpid() != parent:
            same, left = torch.equal(got, want), is_plain(model, set(model.__dict__))
            os._exit(0 if same and session.closed and not left else 3)
    finally:
        if os.getpid() != parent:
            os._exit(4)
    handle.remove()
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    session.close()
    assert torch.equal(got, want)
    assert [facts(tmp_path, run)["complete"] for run in (0, 1)] == [True, True]
    with open_dump(tmp_path) as reader:
        assert reader.runs() == (0, 1)


def test_a_forked_model_is_plain(model, tmp_path):
    attributes = set(model.__dict__)
    session = register_hook(model, DumpConfig(tmp_path))
    status = forked(lambda: 0 if is_plain(model, attributes) and session.closed else 1)
    assert status == 0
    generate(model)
    session.close()
    assert facts(tmp_path)["complete"]


class Prompts(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return torch.arange(5, 12) + i


def test_workers_of_a_data_loader_leave_the_dump_alone(model, tmp_path):
    loader = DataLoader(Prompts(), num_workers=2, multiprocessing_context="fork")
    prompts = [Prompts()[i][None] for i in range(6)]
    want = [model.generate(ids, max_new_tokens=2) for ids in prompts]
    with register_hook(model, DumpConfig(tmp_path, "all")):
        got = [model.generate(ids, max_new_tokens=2) for ids in loader]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    with open_dump(tmp_path) as reader:
        assert reader.runs() == tuple(range(6))
        assert all(reader.run_info(run)["complete"] for run in reader.runs())
    assert not (tmp_path / LOCK).exists()


def hold(folder, pipe):
    lock = lock_dump(folder)
    os.write(pipe, b"." if lock.is_held else b"-")
    signal.pause()


def test_a_dump_that_another_process_writes_is_refused(model, tmp_path):
    attributes = set(model.__dict__)
    with register_hook(model, DumpConfig(tmp_path)):
        generate(model)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        hold(tmp_path, writing)
    assert os.read(reading, 1) == b"."
    before = sorted(tmp_path.rglob("*"))
    for overwrite in (False, True):
        with pytest.raises(DumpWriteError, match=rf"Another process \({child}\) is writing"):
            register_hook(model, DumpConfig(tmp_path, overwrite=overwrite))
    assert sorted(tmp_path.rglob("*")) == before
    assert is_plain(model, attributes)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    with register_hook(model, DumpConfig(tmp_path)):
        generate(model)
    with open_dump(tmp_path) as reader:
        assert reader.runs() == (0, 1)


def test_a_refused_dump_is_not_kept_locked(model, tiny_llama, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)):
        generate(model)
    with pytest.raises(ValueError, match="dump of something else") as caught:
        register_hook(tiny_llama(1), DumpConfig(tmp_path))
    assert caught.traceback
    assert not (tmp_path / LOCK).exists()


def test_two_sessions_of_a_process_take_turns_in_one_dump(model, tmp_path):
    first, second = (register_hook(m, DumpConfig(tmp_path)) for m in (model, model))
    generate(model)
    assert {first.last_run, second.last_run} == {0, 1}
    first.close()
    assert (tmp_path / LOCK).exists()
    generate(model)
    second.close()
    assert not (tmp_path / LOCK).exists()
    assert all(facts(tmp_path, run)["complete"] for run in range(3))


def test_sessions_on_several_models_in_threads(tiny_llama, tmp_path):
    workers, runs = 4, 6
    models = [tiny_llama(seed) for seed in range(workers)]
    for seed, model in enumerate(models):
        with register_hook(model, DumpConfig(tmp_path / f"want{seed}", "all")):
            generate(model, TOKENS)
    start = threading.Barrier(workers)

    def work(seed):
        with register_hook(models[seed], DumpConfig(tmp_path / f"got{seed}", "all")):
            start.wait(20)
            return [generate(models[seed], TOKENS) for _ in range(runs)]

    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(work, range(workers)))
    for seed, model in enumerate(models):
        assert all(torch.equal(got, generate(model, TOKENS)) for got in results[seed])
        want = dumped(tmp_path / f"want{seed}")
        for run in range(runs):
            assert facts(tmp_path / f"got{seed}", run)["complete"]
            assert dumped(tmp_path / f"got{seed}", run) == want
