"""What happens around a generation: streamers, threads, a late stop, runs in a row."""

import threading

import pytest
import torch
from transformers import TextIteratorStreamer
from transformers.generation import utils as generation_utils
from transformers.generation.streamers import BaseStreamer

from hf_dumper import DumpConfig, compare, open_dump, register_hook
from tests.generation.checks import prefixes
from tests.generation.modes import MODES, demo, generate

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))


class Kept(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self):
        self.parts, self.ended = [], False

    def put(self, value):
        self.parts.append(value.reshape(-1).tolist())

    def end(self):
        self.ended = True


class Event:
    """Stands for torch's event of a device: a CPU has none, and nothing to wait for."""

    def __init__(self, **_):
        pass

    record = synchronize = lambda self: None


@pytest.fixture
def late(monkeypatch):
    """Make `generate()` ask a token late whether to stop, as it does on MPS."""
    deferred = generation_utils.DeferredStopCheck
    monkeypatch.setattr(deferred, "is_supported", staticmethod(lambda *_, **__: True))
    monkeypatch.setattr(torch, "Event", Event)


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


def options(**more):
    return {"attention_mask": torch.ones_like(IDS), "do_sample": False, "max_new_tokens": 6} | more


def ending(model, **more):
    """Return options under which every row ends before the length does."""
    new = model.generate(IDS, **options())[:, 7:].tolist()
    ends = [new[0][2], new[1][3]]
    return options(eos_token_id=ends, pad_token_id=0, **more)


def test_a_streamer_is_given_the_same_tokens(model, tmp_path):
    plain, dumped = Kept(), Kept()
    want = model.generate(IDS[:1], **options(attention_mask=None), streamer=plain)
    with register_hook(model, DumpConfig(tmp_path, "all")):
        got = model.generate(IDS[:1], **options(attention_mask=None), streamer=dumped)
    assert torch.equal(want, got)
    assert plain.parts == dumped.parts
    assert dumped.ended
    with open_dump(tmp_path) as dump:
        assert dump.run_info()["generated_ids"] == [[p[0] for p in dumped.parts[1:]]]


def test_text_is_streamed_from_a_thread_that_generates(tmp_path):
    from transformers import AutoTokenizer

    from hf_dumper import DEMO_MODEL

    model, inputs = demo()
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    one = {name: inputs[name][:1] for name in ("input_ids", "attention_mask")}
    with register_hook(model, DumpConfig(tmp_path, "all"), tokenizer=tokenizer):
        call = {**one, "max_new_tokens": 6, "do_sample": False, "streamer": streamer}
        thread = threading.Thread(target=model.generate, kwargs=call)
        thread.start()
        text = "".join(streamer)
        thread.join()
    with open_dump(tmp_path) as dump:
        assert dump.run_info()["complete"]
        assert dump.run_info()["generated_text"] == [text]


def test_two_models_in_two_threads_are_two_dumps(tiny_llama, tmp_path):
    models = [tiny_llama(seed) for seed in (0, 1)]
    want = [m.generate(IDS, **options(num_beams=b)) for m, b in zip(models, (1, 3), strict=True)]
    got, meet = {}, threading.Barrier(2)

    def work(number):
        model = models[number]
        with register_hook(model, DumpConfig(tmp_path / str(number), "all")):
            meet.wait()
            for _ in range(3):
                out = model.generate(IDS, **options(num_beams=(1, 3)[number]))
            got[number] = out

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for number in (0, 1):
        assert torch.equal(got[number], want[number])
        with open_dump(tmp_path / str(number)) as dump:
            assert dump.runs() == (0, 1, 2)
            assert all(dump.run_info(run)["complete"] for run in dump.runs())
            last = dump.run_info(2)["generated_ids"]
            hashes = [dump.index(run).column("hash").to_pylist() for run in dump.runs()]
        assert last == want[number][:, 7:].tolist()
        assert hashes[0] == hashes[1] == hashes[2]


def test_runs_in_a_row_with_other_ways_prompts_and_lengths_are_apart(tmp_path):
    model, inputs = demo()
    names = ("greedy", "beams", "static cache", "guidance", "no cache", "beams", "sampling")
    calls = []
    for n, name in enumerate(names):
        own = {k: v[: 1 + n % 2, n % 3 :] for k, v in inputs.items()}
        calls.append((own, MODES[name], 2 + n))
    want = [generate(model, own, mode, max_new_tokens=new) for own, mode, new in calls]
    with register_hook(model, DumpConfig(tmp_path / "all", "all")):
        for (own, mode, new), plain in zip(calls, want, strict=True):
            dumped = generate(model, own, mode, max_new_tokens=new)
            assert torch.equal(plain.sequences, dumped.sequences)
    for n, (own, mode, new) in enumerate(calls):  # each is what it would be on its own
        alone = tmp_path / str(n)
        with register_hook(model, DumpConfig(alone, "all")):
            generate(model, own, mode, max_new_tokens=new)
        with open_dump(tmp_path / "all") as rows, open_dump(alone) as dump:
            for table in ("index", "positions", "trace"):
                ours, theirs = (
                    [{**row, "run": 0, "shard": None, "offset": None} for row in found.to_pylist()]
                    for found in (getattr(rows, table)(n), getattr(dump, table)(0))
                )
                assert ours == theirs, (names[n], table)


def test_a_late_stop_runs_one_forward_more_which_is_marked(model, tmp_path, late):
    call = ending(model, return_dict_in_generate=True, output_logits=True)
    forwards = []
    with model.register_forward_pre_hook(lambda *_: forwards.append(1)):
        plain = model.generate(IDS, **call)
    tokens = plain.sequences.shape[1] - 7
    assert len(forwards) == tokens + 1
    with register_hook(model, DumpConfig(tmp_path, "all")):
        dumped = model.generate(IDS, **call)
    assert torch.equal(plain.sequences, dumped.sequences)
    assert all(map(torch.equal, plain.logits, dumped.logits))
    with open_dump(tmp_path) as dump:
        info = dump.run_info()
        assert info["discarded_tokens"] == [tokens]
        assert info["generated_ids"] == plain.sequences[:, 7:].tolist()
        assert max(dump.trace().column("token").to_pylist()) == tokens - 1
        assert max(dump.index().column("token").to_pylist()) == tokens
        assert len(prefixes(dump)) == tokens


def test_a_discarded_forward_is_none_of_a_comparison(model, tmp_path, monkeypatch):
    call = ending(model)
    with register_hook(model, DumpConfig(tmp_path / "golden", "all")):
        model.generate(IDS, **call)
    deferred = generation_utils.DeferredStopCheck
    monkeypatch.setattr(deferred, "is_supported", staticmethod(lambda *_, **__: True))
    monkeypatch.setattr(torch, "Event", Event)
    with register_hook(model, DumpConfig(tmp_path / "late", "all")):
        model.generate(IDS, **call)
    for pair in (("golden", "late"), ("late", "golden")):
        found = compare(*(tmp_path / name for name in pair))
        assert found.verdict == "identical"
        assert found.unmatched.num_rows == 0


def test_a_late_stop_at_the_length_runs_nothing_more(model, tmp_path, late):
    with register_hook(model, DumpConfig(tmp_path, "all")):
        model.generate(IDS, **options())
    with open_dump(tmp_path) as dump:
        assert dump.run_info()["discarded_tokens"] == []
        assert len(prefixes(dump)) == 6
