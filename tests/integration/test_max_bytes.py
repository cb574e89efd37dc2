"""A dump with a bound: never larger on disk, and it says what was left out."""

import warnings
from pathlib import Path

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
from hf_dumper.store.budget import Budget, bytes_in
from tests.faults import facts, generate, is_plain, readable_forwards

pytestmark = pytest.mark.timeout(60)
TOKENS = 12
BOUNDS = [250_000, 700_000, 1_000_000]


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


def config(path, bound, **options):
    return DumpConfig(path, "all", max_bytes=bound, hash_weights=False, **options)


@pytest.fixture
def sizes(tmp_path, monkeypatch):
    """Note how large everything is whenever a file gets its name or goes."""
    found = []

    def watch(name):
        original = getattr(Path, name)

        def act(self, *args, **kwargs):
            found.append(bytes_in(tmp_path))
            result = original(self, *args, **kwargs)
            found.append(bytes_in(tmp_path))
            return result

        monkeypatch.setattr(Path, name, act)

    for name in ("rename", "replace", "unlink"):
        watch(name)
    return found


@pytest.mark.parametrize("layout", ["native", "msit"])
@pytest.mark.parametrize("statistics", [0, 1, 2])
@pytest.mark.parametrize("bound", BOUNDS)
def test_a_dump_stays_within_its_bound_at_any_moment(
    model, tmp_path, sizes, bound, statistics, layout
):
    tokens = 5 * TOKENS if statistics == 1 else TOKENS  # a row of the index is small
    want = generate(model, tokens)
    options = {"dump_statistics_mode": statistics, "analyze": True, "layout": layout}
    with register_hook(model, config(tmp_path, bound, **options)):
        with pytest.warns(DumpIncompleteWarning, match=f"max_bytes={bound} is reached") as warned:
            got = generate(model, tokens)
        assert torch.equal(got, want)
        assert len(warned) == 1
    assert max(sizes) <= bound
    assert bytes_in(tmp_path) <= bound


def test_a_msit_dump_fills_its_bound_and_no_more(model, tmp_path):
    (tmp_path / "large").write_bytes(bytes(BOUNDS[-1]))  # of another program
    dump = config(tmp_path, BOUNDS[-1], layout="msit")
    with register_hook(model, dump), pytest.warns(DumpIncompleteWarning, match="max_bytes"):
        generate(model, TOKENS)
    (run,) = tmp_path.glob("msit_dump_*")
    assert 0.7 * BOUNDS[-1] < bytes_in(run) <= BOUNDS[-1]
    with open_dump(tmp_path) as reader:
        assert reader.load("lm_head").shape[-1] == model.config.vocab_size


def test_runs_of_msit_share_the_bound_and_leave_nothing_when_there_is_no_room(model, tmp_path):
    dump = config(tmp_path, BOUNDS[-1], layout="msit", dump_weight=True)
    with register_hook(model, dump), warnings.catch_warnings(record=True, action="always") as told:
        for _ in range(12):
            generate(model, 1)
    assert 1 < len(told) < 12
    assert all("max_bytes" in str(warning.message) for warning in told)
    assert bytes_in(tmp_path) <= BOUNDS[-1]
    with open_dump(tmp_path) as reader:
        assert reader.run_info(0)["complete"]
        assert 0 < len(reader.runs()) < 12
        assert len(reader.weights())


def test_weights_beyond_the_bound_are_not_even_begun(model, tmp_path, sizes):
    dump = config(tmp_path, 300_000, layout="msit", dump_weight=True)
    with (
        pytest.raises(EmptyDumpError),
        pytest.warns(DumpIncompleteWarning, match="max_bytes"),
        register_hook(model, dump),
    ):
        generate(model, 1)
    assert bytes_in(tmp_path) == 0
    assert max(sizes, default=0) == 0


def test_native_weights_beyond_the_bound_are_refused_before_they_are_written(model, tmp_path):
    attributes = set(model.__dict__)
    with pytest.raises(DumpWriteError, match="max_bytes=100000 is reached"):
        register_hook(model, config(tmp_path / "d", 100_000, dump_weight=True))
    assert not list((tmp_path / "d").rglob("*.safetensors"))
    assert is_plain(model, attributes)
    with register_hook(model, config(tmp_path / "d", 10**8, dump_weight=True)):
        generate(model, 1)
    with open_dump(tmp_path / "d") as reader:
        assert len(reader.weights())
        assert reader.run_info()["complete"]


def test_the_reason_counts_what_was_left_out(model, tmp_path):
    with register_hook(model, config(tmp_path, BOUNDS[1])) as session:
        with pytest.warns(DumpIncompleteWarning):
            generate(model, TOKENS)
        left_out = session._observer.left_out
    info = facts(tmp_path)
    discarded = info["counts"]["discarded"]
    assert discarded > 0
    assert info["complete"] is False
    assert f"max_bytes={BOUNDS[1]} is reached" in info["incomplete"]
    assert f"({discarded} records were dropped)" in info["incomplete"]
    assert f"forwards that were not recorded after that: {left_out}" in info["incomplete"]
    forwards = readable_forwards(tmp_path)
    assert forwards == list(range(len(forwards)))
    assert 0 < len(forwards) < TOKENS
    assert len(forwards) + left_out < TOKENS


def test_a_larger_bound_holds_more(model, tmp_path):
    held = []
    for bound in BOUNDS:
        with (
            register_hook(model, config(tmp_path / str(bound), bound)),
            pytest.warns(DumpIncompleteWarning),
        ):
            generate(model, TOKENS)
        held.append(len(readable_forwards(tmp_path / str(bound))))
    assert held == sorted(set(held))


def test_a_bound_that_is_not_reached_changes_nothing(model, tmp_path):
    with register_hook(model, config(tmp_path, 1 << 30)):
        generate(model, TOKENS)
    assert facts(tmp_path)["complete"]
    assert readable_forwards(tmp_path) == list(range(TOKENS))


@pytest.mark.filterwarnings("ignore::hf_dumper.DumpIncompleteWarning")
def test_runs_and_sessions_share_the_bound(model, tmp_path):
    want, bound = generate(model), 1_000_000
    for _ in range(2):
        with register_hook(model, config(tmp_path, bound)) as session:
            for _ in range(8):
                assert torch.equal(generate(model), want)
            session._runs.stored += 1  # the second session may find no room at all
    assert facts(tmp_path, 0)["complete"]
    with open_dump(tmp_path) as reader:
        assert "max_bytes" in reader.run_info(reader.runs()[-1])["incomplete"]
    assert bytes_in(tmp_path) <= bound


def test_a_bound_that_is_reached_can_stop_the_generation(model, tmp_path):
    attributes = set(model.__dict__)
    with (
        pytest.raises(DumpWriteError, match=f"max_bytes={BOUNDS[0]} is reached"),
        register_hook(model, config(tmp_path, BOUNDS[0], on_error="raise")),
    ):
        generate(model, 50)
    assert is_plain(model, attributes)
    assert bytes_in(tmp_path) <= BOUNDS[0]


def test_a_bound_is_no_part_of_what_a_dump_is(model, tmp_path):
    for bound in (1 << 30, 1 << 31, None):
        with register_hook(model, config(tmp_path, bound)):
            generate(model)
    assert all(facts(tmp_path, run)["complete"] for run in range(3))


def test_a_budget_that_refuses_takes_nothing():
    budget = Budget(10, 4)
    with pytest.raises(DumpWriteError, match="max_bytes=10 is reached: 4 bytes are taken, and 7"):
        budget.claim(7)
    budget.claim(6)
    with pytest.raises(DumpWriteError):
        budget.claim(1)


def test_a_budget_without_a_bound_takes_anything():
    Budget().claim(1 << 60)


def test_a_file_that_is_renamed_while_files_are_counted_is_no_error(tmp_path, monkeypatch):
    """Another session of this process writes the same dump."""
    (tmp_path / "kept").write_bytes(bytes(3))
    walked = [(str(tmp_path), [], ["kept", "run.json.1.tmp"])]
    monkeypatch.setattr("os.walk", lambda _folder: walked)
    assert bytes_in(tmp_path) == 3


def test_a_trace_that_does_not_fit_is_left_out_and_told(model, tmp_path, monkeypatch):
    """Of a long generation whose first token alone is dumped, the trace is the larger part."""
    used = []
    original = Budget.claim

    def claim(self, nbytes):
        used.append(self._used)
        original(self, nbytes)

    monkeypatch.setattr(Budget, "claim", claim)
    options = {"dump_statistics_mode": 1, "hash_weights": False}
    with register_hook(model, DumpConfig(tmp_path / "a", max_bytes=10**9, **options)):
        want = generate(model, 100)
    bound = used[-1] + 1000  # less than the trace, which is claimed last
    tight = DumpConfig(tmp_path / "b", max_bytes=bound, **options)
    left_out = pytest.warns(DumpIncompleteWarning, match="The trace is left out: max_bytes")
    with register_hook(model, tight), left_out:
        got = generate(model, 100)
    assert torch.equal(got, want)
    assert bytes_in(tmp_path / "b") <= bound
    assert not list((tmp_path / "b").rglob("trace.parquet"))
    info = facts(tmp_path / "b", 0)
    assert info["complete"] is False
    assert "The trace is left out" in info["incomplete"]
    with open_dump(tmp_path / "b") as reader:
        kept = reader.keys()
    assert {key.forward for key in kept} == {0}
