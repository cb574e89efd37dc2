"""What an error of the dump does: a warning and no more, or the end of the generation."""

import pytest
import torch

from hf_dumper import (
    CaptureError,
    DumpConfig,
    DumpIncompleteWarning,
    DumpWriteError,
    register_hook,
)
from hf_dumper.capture import observer
from tests.faults import (
    IDS,
    Counter,
    facts,
    fail_at,
    generate,
    is_plain,
    os_error,
    readable_forwards,
)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


def config(path, on_error="raise"):
    return DumpConfig(path, "all", on_error=on_error)


def blind(monkeypatch, forward):
    """Make the inputs of a forward and of those after it unreadable for us."""
    original, seen = observer.read_inputs, []

    def read(*args, **options):
        seen.append(1)
        if len(seen) > forward:
            msg = "cannot read the inputs"
            raise ZeroDivisionError(msg)
        return original(*args, **options)

    monkeypatch.setattr(observer, "read_inputs", read)


@pytest.mark.parametrize("forward", [0, 3])
def test_a_writer_that_fails_stops_the_generation_at_the_next_token(
    model, tmp_path, monkeypatch, forward
):
    attributes, counter = set(model.__dict__), Counter()
    fail_at(monkeypatch, "write", os_error(), forward)
    with (
        pytest.raises(DumpWriteError, match=r"Run 0 in .* is incomplete: .*No space left"),
        register_hook(model, config(tmp_path)),
    ):
        generate(model, 20, counter)
    assert forward < counter.tokens <= forward + 2
    assert is_plain(model, attributes)
    assert readable_forwards(tmp_path) == list(range(forward))
    assert "No space left" in facts(tmp_path)["incomplete"]


def test_what_cannot_be_recorded_stops_the_generation_at_its_token(model, tmp_path, monkeypatch):
    attributes, counter = set(model.__dict__), Counter()
    blind(monkeypatch, 2)
    with (
        pytest.raises(CaptureError, match=r"Run 0 in .* is incomplete: cannot read") as caught,
        register_hook(model, config(tmp_path)),
    ):
        generate(model, 20, counter)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert counter.tokens == 3
    assert is_plain(model, attributes)
    assert facts(tmp_path)["incomplete"] == "ZeroDivisionError: cannot read the inputs"


def test_an_error_of_the_commit_is_raised_by_generate(model, tmp_path, monkeypatch):
    session = register_hook(model, config(tmp_path))
    fail_at(monkeypatch, "commit", os_error())
    with pytest.raises(DumpWriteError, match="No space left"):
        generate(model)
    monkeypatch.undo()
    session.close()


@pytest.mark.parametrize("name", ["write", "commit", "open_run"])
def test_a_bare_forward_raises_too(model, tmp_path, monkeypatch, name):
    attributes = set(model.__dict__)
    session = register_hook(model, config(tmp_path))
    fail_at(monkeypatch, name, DumpWriteError("no room"))
    with pytest.raises(DumpWriteError, match="no room"), torch.no_grad():
        model(IDS)
    monkeypatch.undo()
    with torch.no_grad():
        model(IDS)
    session.close()
    assert facts(tmp_path, session.last_run)["complete"]
    assert is_plain(model, attributes)


def test_a_run_that_cannot_be_opened_stops_before_the_first_forward(model, tmp_path, monkeypatch):
    session = register_hook(model, config(tmp_path))
    fail_at(monkeypatch, "open_run", os_error())
    forwards = []
    handle = model.model.register_forward_hook(lambda *_: forwards.append(1))
    with pytest.raises(DumpWriteError, match=r"A run cannot be dumped: .*No space left"):
        generate(model)
    monkeypatch.undo()
    assert forwards == []
    handle.remove()
    generate(model)
    session.close()


def test_after_a_stop_the_next_run_is_whole_and_as_ever(model, tmp_path, monkeypatch):
    want = generate(model)
    with register_hook(model, config(tmp_path)) as session:
        fail_at(monkeypatch, "write", os_error())
        with pytest.raises(DumpWriteError):
            generate(model)
        monkeypatch.undo()
        assert torch.equal(generate(model), want)
        assert session.runs == (0, 1)
    assert [facts(tmp_path, run)["complete"] for run in (0, 1)] == [False, True]


def test_an_error_of_the_model_is_not_replaced(model, tmp_path, monkeypatch):
    error = KeyError("in the model")

    def hook(*_):
        raise error

    model.model.layers[1].register_forward_pre_hook(hook)
    fail_at(monkeypatch, "write", os_error())
    session = register_hook(model, config(tmp_path))
    with pytest.warns(DumpIncompleteWarning, match="No space"), pytest.raises(KeyError) as caught:
        generate(model)
    assert caught.value is error
    monkeypatch.undo()
    session._release()


@pytest.mark.parametrize("forward", [0, 2])
def test_a_warning_is_one_and_tells_what_is_missing(model, tmp_path, monkeypatch, forward):
    want = generate(model, 8)
    fail_at(monkeypatch, "write", os_error(), forward)
    with register_hook(model, config(tmp_path, "warn")):
        with pytest.warns(DumpIncompleteWarning, match="No space left") as warned:
            got = generate(model, 8)
        assert torch.equal(got, want)
    assert len(warned) == 1
    reason = facts(tmp_path)["incomplete"]
    assert "records were dropped" in reason
    assert "forwards that were not recorded after that: " in reason
    assert readable_forwards(tmp_path) == list(range(forward))


def test_recording_ends_with_the_writer(model, tmp_path, monkeypatch):
    fail_at(monkeypatch, "write", os_error())
    with register_hook(model, config(tmp_path, "warn")) as session:
        with pytest.warns(DumpIncompleteWarning):
            generate(model, 12)
        assert session._observer.left_out >= 10
