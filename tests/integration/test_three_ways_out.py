"""Success, an exception in the model, an exception in the writer: each leaves the model plain."""

import pytest
import torch

from hf_dumper import (
    DumpConfig,
    DumpIncompleteWarning,
    DumpWriteError,
    EmptyDumpError,
    open_dump,
    register_hook,
)
from hf_dumper.store import DirectorySink

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))
OPTIONS = {"input_ids": IDS, "max_new_tokens": 3}
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)

pytestmark = pytest.mark.usefixtures("kind_of_hooks")


class BoomError(Exception):
    """What goes wrong."""


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


def generate(model):
    return model.generate(**OPTIONS)


def forward(model):
    with torch.no_grad():
        return model(IDS).logits


WAYS = {"generate": generate, "forward": forward}


def plain(model, session, attributes):
    """Tell whether nothing of ours is left but the closed session."""
    hooks = [name for m in model.modules() for name in HOOKS if getattr(m, name)]
    added = set(model.__dict__) - attributes
    return (hooks, added, model.dump is session, session.closed) == ([], {"dump"}, True, True)


def break_model(model):
    """Make the second layer raise; return the error and the handle that ends it."""
    error = BoomError("in the model")

    def hook(*_):
        raise error

    return error, model.model.layers[1].register_forward_pre_hook(hook)


def break_writer(monkeypatch, name="write", error=None):
    def broken(*_args, **_kwargs):
        raise error or OSError(28, "No space left on device")

    monkeypatch.setattr(DirectorySink, name, broken)


@pytest.mark.parametrize("way", WAYS)
def test_after_success_the_model_is_plain(model, tmp_path, way):
    attributes, cls = set(model.__dict__), type(model)
    want = WAYS[way](model)
    with register_hook(model, DumpConfig(tmp_path)) as session:
        got = WAYS[way](model)
    assert torch.equal(want, got)
    assert type(model) is cls
    assert plain(model, session, attributes)
    with open_dump(tmp_path) as reader:
        assert reader.run_info(0)["complete"]


@pytest.mark.parametrize("way", WAYS)
def test_an_exception_of_the_model_passes_and_leaves_it_plain(model, tmp_path, way):
    attributes = set(model.__dict__)
    error, handle = break_model(model)
    with pytest.raises(BoomError) as caught, register_hook(model, DumpConfig(tmp_path)) as session:
        WAYS[way](model)
    handle.remove()
    assert caught.value is error
    assert plain(model, session, attributes)


@pytest.mark.parametrize("way", WAYS)
def test_an_exception_of_the_model_marks_the_run_and_the_next_is_whole(model, tmp_path, way):
    want = WAYS[way](model)
    with register_hook(model, DumpConfig(tmp_path)) as session:
        _, handle = break_model(model)
        with pytest.raises(BoomError):
            WAYS[way](model)
        handle.remove()
        assert torch.equal(WAYS[way](model), want)
        assert session.runs == (0, 1)
    with open_dump(tmp_path) as reader:
        first, second = reader.run_info(0), reader.run_info(1)
        assert (first["complete"], second["complete"]) == (False, True)
        assert "BoomError: in the model" in first["incomplete"]


def test_what_was_captured_before_the_exception_can_be_read(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)):
        _, _handle = break_model(model)
        with pytest.raises(BoomError):
            forward(model)
    with open_dump(tmp_path) as reader:
        assert reader.load("model.layers.0").shape == (2, 7, 64)


@pytest.mark.parametrize("name", ["write", "commit_run"])
@pytest.mark.parametrize("way", WAYS)
def test_a_writer_that_fails_is_a_warning_and_the_result_is_unharmed(
    model, tmp_path, monkeypatch, way, name
):
    attributes = set(model.__dict__)
    want = WAYS[way](model)
    session = register_hook(model, DumpConfig(tmp_path))
    break_writer(monkeypatch, name)
    with pytest.warns(DumpIncompleteWarning, match="No space left on device") as warned:
        got = WAYS[way](model)
    monkeypatch.undo()
    session.close()
    assert torch.equal(want, got)
    assert len(warned) == 1
    assert plain(model, session, attributes)


@pytest.mark.parametrize("way", WAYS)
def test_a_warning_points_at_the_code_of_the_user(model, tmp_path, monkeypatch, way):
    session = register_hook(model, DumpConfig(tmp_path))
    break_writer(monkeypatch)
    with pytest.warns(DumpIncompleteWarning) as warned:
        WAYS[way](model)
    monkeypatch.undo()
    session.close()
    assert warned[0].filename == __file__


@pytest.mark.parametrize("way", WAYS)
def test_after_a_failed_writer_the_run_is_marked_and_the_next_is_whole(
    model, tmp_path, monkeypatch, way
):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        break_writer(monkeypatch)
        with pytest.warns(DumpIncompleteWarning):
            WAYS[way](model)
        monkeypatch.undo()
        WAYS[way](model)
        assert session.runs == (0, 1)
    with open_dump(tmp_path) as reader:
        assert [reader.run_info(run)["complete"] for run in (0, 1)] == [False, True]
        assert reader.load("root", "output.logits", run=1).shape[0] == 2


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_cannot_be_opened_is_one_warning_and_the_next_is_dumped(
    model, tmp_path, monkeypatch, way
):
    want = WAYS[way](model)
    with register_hook(model, DumpConfig(tmp_path)) as session:
        break_writer(monkeypatch, "open_run", DumpWriteError("no room"))
        with pytest.warns(DumpIncompleteWarning, match="not dumped at all") as warned:
            got = WAYS[way](model)
        monkeypatch.undo()
        assert torch.equal(got, want)
        assert len(warned) == 1
        WAYS[way](model)
        assert len(session.runs) == 1
    with open_dump(tmp_path) as reader:
        assert reader.load("root", "output.logits", run=session.last_run).shape[0] == 2


def test_an_unforeseen_error_of_the_writer_is_a_warning_too(model, tmp_path, monkeypatch):
    with register_hook(model, DumpConfig(tmp_path)):
        break_writer(monkeypatch, "write", ZeroDivisionError("not a file system's"))
        with pytest.warns(DumpIncompleteWarning, match="not a file system's"):
            generate(model)
        monkeypatch.undo()
        generate(model)


def test_a_failed_writer_does_not_hide_the_exception_of_the_model(model, tmp_path, monkeypatch):
    with register_hook(model, DumpConfig(tmp_path)):
        break_writer(monkeypatch)
        _, handle = break_model(model)
        with pytest.warns(DumpIncompleteWarning), pytest.raises(BoomError):
            generate(model)
        monkeypatch.undo()
        handle.remove()
        generate(model)


def test_an_empty_dump_is_an_error_of_close_and_leaves_the_model_plain(model, tmp_path):
    attributes = set(model.__dict__)
    session = register_hook(model, DumpConfig(tmp_path))
    with pytest.raises(EmptyDumpError, match="the model did not run"):
        session.close()
    session.close()
    assert plain(model, session, attributes)


def test_an_empty_dump_does_not_replace_another_exception(model, tmp_path):
    with pytest.raises(BoomError), register_hook(model, DumpConfig(tmp_path)):
        raise BoomError


@pytest.mark.filterwarnings("ignore::hf_dumper.TokenNeverReachedWarning")
def test_generate_returns_though_the_dump_stays_empty(model, tmp_path):
    session = register_hook(model, DumpConfig(tmp_path, [9]))
    assert generate(model).shape == (2, 10)
    with pytest.raises(EmptyDumpError, match=r"token_range=.*9.* was never reached"):
        session.close()
