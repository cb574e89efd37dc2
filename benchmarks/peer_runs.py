"""Run one tool in turn with the plain model; print the seconds of both as JSON.

    python benchmarks/peer_runs.py "mindstudio-probe, L0 statistics" W1 3

Called by `peers.py`, in an environment that has the tool. The plain model is a copy of its own, so
that nothing a tool leaves on a module slows it down.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rounds import temporary_folder
from transformers import PreTrainedModel
from variants import armed
from workloads import KNOWN, Workload

Run = Callable[[], torch.Tensor]


def main() -> None:
    """Measure what the command line names."""
    name, workload_name, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    workload = KNOWN[workload_name]
    torch.set_num_threads(workload.threads)
    plain_model, model = workload.build(), workload.build()
    tool, mode = name.split(", ", 1)
    tokens = workload.generate(plain_model)  # not the first to meet these shapes
    times: dict[str, list[float]] = {"plain": [], "dumped": []}
    same = True
    with temporary_folder() as folder:
        run = TOOLS[tool](model, workload, mode, folder)
        for i in range(rounds):
            pair = [("plain", lambda: workload.generate(plain_model)), ("dumped", run)]
            for which, generate in pair if i % 2 else reversed(pair):
                start = time.perf_counter()
                same &= torch.equal(generate(), tokens)
                times[which].append(time.perf_counter() - start)
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    sizes_per_round = {"bytes": sum(sizes) / rounds, "files": len(sizes) // rounds}
    print(json.dumps({**times, **sizes_per_round, "same_tokens": same}))


def hf_dumper(model: PreTrainedModel, workload: Workload, mode: str, folder: Path) -> Run:
    """Dump all inputs and outputs, a session for all rounds; a run is on disk when it returns."""
    armed(model, mode, folder / "dump")
    return lambda: workload.generate(model)


def msprobe(model: PreTrainedModel, workload: Workload, mode: str, folder: Path) -> Run:
    """Dump inputs and outputs of modules (level L0), one step for each generation."""
    from msprobe.pytorch import PrecisionDebugger

    level, task = mode.split()
    config: dict[str, Any] = {"task": task, "dump_path": str(folder / "dump"), "level": level}
    config |= {"rank": [], "step": [], task: {"scope": [], "list": [], "data_mode": ["all"]}}
    path = folder / "config.json"
    path.write_text(json.dumps(config), "utf-8")
    debugger = PrecisionDebugger(config_path=str(path))

    def run() -> torch.Tensor:
        debugger.start(model)
        tokens = workload.generate(model)
        debugger.stop()
        debugger.step()
        return tokens

    return run


def nnsight(model: PreTrainedModel, workload: Workload, mode: str, _folder: Path) -> Run:
    """Refer to what every module returns, and is given if the mode says so; nothing is written."""
    from nnsight import NNsight

    traced = NNsight(model)
    called = sum(not isinstance(module, torch.nn.ModuleList) for module in model.modules())
    inputs = "inputs" in mode
    ids = workload.ids(model)

    def generate(_ids: torch.Tensor) -> torch.Tensor:
        return workload.generate(model)

    def run() -> torch.Tensor:
        with traced.trace(ids, fn=generate) as tracer:  # without an input it would not run at all
            kept = tracer.cache(include_inputs=inputs)
            tokens = tracer.result.save()
        seen = [len(kept[path]) for path in kept.keys()]  # noqa: SIM118  # it is no mapping
        if seen != [workload.tokens] * called:
            msg = f"Of {called} modules the cache holds {len(seen)}, at {set(seen)} tokens."
            raise RuntimeError(msg)
        return tokens

    return run


TOOLS = {"hf_dumper": hf_dumper, "nnsight": nnsight, "mindstudio-probe": msprobe}


if __name__ == "__main__":
    main()
