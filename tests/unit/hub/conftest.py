"""Hubs on the loopback address, and a cache of their own for each test."""

import huggingface_hub.constants
import pytest
import torch

from hf_dumper import DumpConfig, register_hook
from hf_dumper.hub.client import Hub
from hf_dumper.hub.retry import Patience
from tests.hub_server import HubServer


@pytest.fixture(autouse=True)
def cache(tmp_path, tmp_path_factory, monkeypatch):
    """Let the hub's client have a network and an empty cache."""
    constants = huggingface_hub.constants
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path_factory.mktemp("home")))
    return folder


@pytest.fixture
def server():
    with HubServer() as hub:
        yield hub


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were waited for, by us or by the client; they pass at once."""
    seconds = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


@pytest.fixture
def told():
    """Lines about waits."""
    return []


@pytest.fixture
def hub(server, waits, told):
    return Hub(server.url, None, Patience(sleep=waits.append, tell=told.append))


@pytest.fixture
def dump(tmp_path, tiny_llama):
    """A dump of two runs with weights."""
    model = tiny_llama()
    path = tmp_path / "dump"
    with register_hook(model, DumpConfig(path, "all", dump_weight=True)):
        for prompt in ([[5, 6, 7]], [[9, 8]]):
            model.generate(torch.tensor(prompt), max_new_tokens=2, do_sample=False)
    return path
