"""Generates in processes that lose something on the way, and prints what each one left behind.

Run as a script by `test_faults_of_the_system.py`, with a folder. A process of its own, because
limits cannot be taken back, and because only one that never used a second torch thread can be
forked safely.
"""

import json
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from server_model import build
from transformers import PreTrainedModel

from hf_dumper import DumpConfig, open_dump, register_hook

TOKENS, LOST_AT = 8, 3
NOBODY = 65534
IDS = torch.arange(1, 8)[None]


def generate(model: PreTrainedModel, tokens: int = TOKENS) -> list[int]:
    result: list[int] = model.generate(IDS, max_new_tokens=tokens, do_sample=False)[0].tolist()
    return result


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))


def leave_handles(spare: int) -> Callable[[], None]:
    def limit() -> None:
        first_free = os.dup(0)
        os.close(first_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + spare, first_free + spare))

    return limit


def become_nobody() -> None:
    os.setuid(NOBODY)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


FAULTS: dict[str, Callable[[], None]] = {
    "file size": limit_file_size,
    **{f"{spare} handles": leave_handles(spare) for spare in range(5)},
    "permission": become_nobody,
    "sigterm": terminate,
}


def live(model: PreTrainedModel, folder: Path, fault: Callable[[], None], early: bool) -> object:
    """Dump a run, lose something, dump another one; say what that was like."""
    want = generate(model)
    session = register_hook(model, DumpConfig(folder, "all", dump_statistics_mode=2))
    generate(model)
    forwards = []

    def hook(*_: object) -> None:
        forwards.append(1)
        if len(forwards) == LOST_AT:
            fault()

    if early:
        fault()
    else:
        model.model.layers[1].register_forward_hook(hook)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        got = generate(model)
    closed = "closed"
    try:
        session.close()
    except Exception as error:
        closed = repr(error)
    return {"same": got == want, "told": [str(w.message) for w in told], "closed": closed}


def in_child(work: Callable[[], object]) -> tuple[int, object]:
    """Return the status of a forked process, and what it says."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        signal.alarm(30)
        try:
            os.write(writing, json.dumps(work()).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    said = b""
    while block := os.read(reading, 65536):
        said += block
    os.close(reading)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(said) if said else None


def inspect(folder: Path) -> list[object]:
    """Read every tensor of every run."""
    found: list[object] = []
    with open_dump(folder) as reader:
        for run in reader.runs():
            info, table = reader.run_info(run), reader.index(run)
            for key in reader.keys(run=run):
                reader.load_key(key)
            forwards = sorted(set(table["forward"].to_pylist()))
            reason = info["incomplete"]
            found.append({"complete": info["complete"], "why": reason, "forwards": forwards})
    return found


def main() -> None:
    torch.set_num_threads(1)
    folder, model = Path(sys.argv[1]), build()
    with register_hook(model, DumpConfig(folder / "warm")):  # what is imported late, is imported
        generate(model)
    for name, fault in FAULTS.items():
        for early in (True, False):
            path = folder / f"{name} {early}".replace(" ", "-")
            status, said = in_child(lambda p=path, f=fault, e=early: live(model, p, f, e))
            report = {"fault": name, "early": early, "status": status, "said": said}
            sys.stdout.write(json.dumps(report | {"runs": inspect(path)}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
