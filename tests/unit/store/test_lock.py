"""Who may write a dump: one process, until it ends, however it ends."""

import gc
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from hf_dumper.errors import DumpFormatError, DumpWriteError
from hf_dumper.store import lock as module
from hf_dumper.store.directory import open_folder
from hf_dumper.store.layout import LOCK
from hf_dumper.store.lock import join_dump, lock_dump

pytestmark = [
    pytest.mark.timeout(30),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@contextmanager
def another_process(work):
    """Run `work` in a forked process that then waits; yield its number."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            kept = work()
            os.write(writing, b"." if kept else b"-")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"."
        yield child
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def try_in_another_process(folder):
    """Return what a process of its own is told that wants the lock: empty when it gets it."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            lock_dump(folder)
        except DumpWriteError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as told:
        return told.read()


def test_a_second_process_is_refused_and_told_of_the_first(tmp_path):
    with another_process(lambda: lock_dump(tmp_path)) as child:
        with pytest.raises(DumpWriteError, match=rf"Another process \({child}\) is writing") as e:
            lock_dump(tmp_path)
        assert str(tmp_path) in str(e.value)


def test_a_killed_process_leaves_no_lock_behind(tmp_path):
    with another_process(lambda: lock_dump(tmp_path)):
        pass
    assert (tmp_path / LOCK).exists()
    lock = lock_dump(tmp_path)
    assert lock.is_held
    assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"


def test_nothing_is_left_when_nobody_has_the_lock_any_more(tmp_path):
    lock = lock_dump(tmp_path)
    assert try_in_another_process(tmp_path) != ""
    del lock
    assert list(tmp_path.iterdir()) == []
    assert try_in_another_process(tmp_path) == ""


def test_the_sessions_of_a_process_share_the_lock(tmp_path):
    first, second = lock_dump(tmp_path), lock_dump(tmp_path / "." / "x" / "..")
    assert first is second
    del first
    gc.collect()
    assert try_in_another_process(tmp_path) != ""
    del second
    assert try_in_another_process(tmp_path) == ""


def test_a_forked_process_neither_keeps_nor_releases_the_lock(tmp_path):
    locks = [lock_dump(tmp_path)]

    def drop_all():
        was_held = locks.pop().is_held
        gc.collect()
        return not was_held

    with another_process(drop_all):
        assert locks[0].is_held
        assert try_in_another_process(tmp_path) != ""
        locks.clear()  # while the child lives
        assert try_in_another_process(tmp_path) == ""


def test_a_forked_process_that_exits_in_order_leaves_the_lock_alone(tmp_path):
    lock = lock_dump(tmp_path)
    child = os.fork()
    if not child:
        module.finalize._exitfunc()  # what an interpreter does at its end
        os._exit(0)
    os.waitpid(child, 0)
    assert lock.is_held
    assert (tmp_path / LOCK).exists()


def test_a_program_that_is_started_does_not_inherit_the_lock(tmp_path):
    lock = lock_dump(tmp_path)
    program = [sys.executable, "-c", "import time; print('.', flush=True); time.sleep(20)"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, close_fds=False) as started:
        assert started.stdout.read(1) == b"."
        del lock
        assert try_in_another_process(tmp_path) == ""
        started.kill()


def test_a_folder_that_was_removed_and_made_again_is_locked_anew(tmp_path):
    folder = tmp_path / "dump"
    folder.mkdir()
    old = lock_dump(folder)
    (folder / LOCK).unlink()
    folder.rmdir()
    folder.mkdir()
    assert not old.is_held
    new = lock_dump(folder)
    del old
    assert new.is_held
    assert try_in_another_process(folder) != ""


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic"):
        lock_dump(tmp_path / "dump")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_file_system_without_locks_is_written_unlocked(tmp_path, monkeypatch):
    def flock(fd, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(module.fcntl, "flock", flock)
    assert lock_dump(tmp_path).is_held


def test_a_folder_that_is_no_dump_gets_no_lock_file(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DumpFormatError, match="is no dump"):
        open_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_is_to_be_a_dump_is_created_and_locked(tmp_path):
    lock = open_folder(tmp_path / "a" / "b")
    assert lock.is_held
    assert open_folder(tmp_path / "a" / "b") is lock


def test_a_launch_keeps_others_out_until_its_last_process_has_ended(tmp_path):
    lock = lock_dump(tmp_path)
    mark = lock.share()
    with another_process(lambda: join_dump(tmp_path, mark)):
        assert f"({os.getpid()} on " in try_in_another_process(tmp_path)
        del lock  # the main process may be the first to end
        assert (tmp_path / LOCK).exists()
        assert try_in_another_process(tmp_path) != ""
    assert try_in_another_process(tmp_path) == ""


def test_the_last_process_of_a_launch_leaves_nothing(tmp_path):
    lock = lock_dump(tmp_path)
    joined = join_dump(tmp_path, lock.share())
    del lock
    assert joined.is_held
    del joined
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_another_launch_cannot_join(tmp_path):
    lock = lock_dump(tmp_path)
    mark = lock.share()
    lock.share()
    with pytest.raises(DumpWriteError, match="not that of the main process of this launch"):
        join_dump(tmp_path, mark)
    assert lock.is_held


def test_a_launch_whose_main_process_has_ended_cannot_be_joined(tmp_path):
    lock = lock_dump(tmp_path)
    mark = lock.share()
    del lock
    with pytest.raises(DumpWriteError, match=LOCK):
        open_folder(tmp_path, mark)


def test_a_dump_that_is_not_shared_cannot_be_joined(tmp_path):
    with (
        another_process(lambda: lock_dump(tmp_path)),
        pytest.raises(DumpWriteError, match="Another process"),
    ):
        join_dump(tmp_path, "any mark")
