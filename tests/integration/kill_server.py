"""Kills generating processes at random moments, and prints what each one left behind.

Run as a script by `test_sigkill_model.py`, with a folder, a number of kills and a seed. A process
of its own, because only one that never used a second torch thread can be forked safely.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from server_model import build
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from xxhash import xxh3_64_intdigest

from hf_dumper import DumpConfig, open_dump, register_hook
from hf_dumper.core.protocols import DumpReader

TOKENS = 6


class Progress(BaseStreamer):
    """Writes one byte into a pipe for every token; the first call is the prompt."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def put(self, value: torch.Tensor) -> None:
        os.write(self.pipe, b".")

    def end(self) -> None:
        os.write(self.pipe, b"e")


def live(model: PreTrainedModel, folder: Path, pipe: int) -> None:
    """Generate until killed; every generation is a run."""
    register_hook(model, DumpConfig(folder, "all", dump_statistics_mode=2))
    ids = torch.arange(1, 8)[None]
    while True:
        model.generate(ids, max_new_tokens=TOKENS, do_sample=False, streamer=Progress(pipe))
        os.write(pipe, b"|")


def kill_one(model: PreTrainedModel, folder: Path, delay: float) -> bytes:
    """Let a child live for `delay` seconds; return the progress it reported."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            live(model, folder, writing)
        finally:
            os._exit(1)
    os.close(writing)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    progress = b""
    while block := os.read(reading, 4096):
        progress += block
    os.close(reading)
    return progress


def inspect(folder: Path, progress: bytes) -> dict[str, object]:
    """Say what is readable of what was reported, and that it is sound."""
    runs = progress.split(b"|")
    if not (folder / "manifest.json").exists():
        return {"reported": len(progress), "sound": not progress, "lost": 0, "complete": True}
    with open_dump(folder) as reader:
        found = [check_run(reader, run) for run in reader.runs()]
    finished = found[: len(runs) - 1]
    reported = max(0, runs[-1].count(b".") - 1)  # the streamer sees the prompt first
    last = found[len(runs) - 1]["forwards"] if len(found) >= len(runs) else 0
    return {
        "reported": len(progress),
        "sound": all(run["sound"] for run in found),
        "complete": all(r["complete"] and r["forwards"] == TOKENS for r in finished),
        "lost": reported - last,
    }


def check_run(reader: DumpReader, run: int) -> dict[str, object]:
    table = reader.index(run)
    forwards = sorted(set(table["forward"].to_pylist()))
    sound = forwards == list(range(len(forwards)))
    columns = ["module", "slot", "call", "forward", "token", "hash"]
    for row in table.select(columns).to_pylist()[-200:]:  # what was written last is at risk
        where = {name: row[name] for name in ("call", "forward", "token")}
        tensor = reader.load(row["module"], row["slot"], run=run, **where)
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        sound = sound and xxh3_64_intdigest(data) == row["hash"]
    complete = reader.run_info(run)["complete"]
    return {"sound": sound, "complete": complete, "forwards": len(forwards)}


def main() -> None:
    torch.set_num_threads(1)
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    model = build()
    warm = register_hook(model, DumpConfig(folder / "warm"))  # what is imported late, is imported
    with warm:
        model(torch.arange(1, 8)[None])
    chance = random.Random(seed)
    for i in range(kills):
        path = folder / f"{i:03d}"
        progress = kill_one(model, path, chance.uniform(0, 0.2))
        sys.stdout.write(json.dumps(inspect(path, progress)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
