"""Deterministic computation for one block: seeds, flags, threads and environment, all put back.

What changes is a table of flags: entering the block is one loop over it, leaving is another.
"""

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from operator import attrgetter
from sys import modules
from typing import Any

import numpy as np
import torch
from torch import backends

from hf_dumper.errors import ConfigError

MIXED = "mixed"
"""Value of a flag that torch refuses to read: its old and its new TF32 settings disagree."""

CUBLAS_WORKSPACE, CUBLAS_WANTED = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"

ENVIRONMENT_OF_INTEREST = (
    CUBLAS_WORKSPACE,
    "ATB_LLM_LCOC_ENABLE",
    "ATB_MATMUL_SHUFFLE_K_ENABLE",
    "CLOSE_MATMUL_K_SHIFT",
    "FLASH_ATTENTION_DETERMINISTIC",
    "HCCL_DETERMINISTIC",
    "LCCL_DETERMINISTIC",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
"""Variables that change numbers; the facts show those that are set."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One setting of the process.

    `wanted` are the values that will do: a flag that has one of them is left as it is, any other is
    set to the first. Empty means that the value in force is pinned by setting it.
    """

    name: str
    get: Callable[[], Any]
    set: Callable[[Any], object]
    wanted: tuple[Any, ...]

    def read(self) -> Any:
        """Return the value in force, or `MIXED`."""
        try:
            return self.get()
        except RuntimeError:
            return MIXED


def _setting(path: str, *wanted: object) -> Flag:
    """Return the flag of an attribute of torch, named without the leading `backends.`."""
    owner_path, _, attribute = path.rpartition(".")
    owner = attrgetter(owner_path)(torch)
    get, put = partial(getattr, owner, attribute), partial(setattr, owner, attribute)
    return Flag(path.removeprefix("backends."), get, put, wanted)


def _variable(name: str, wanted: str) -> Flag:
    def put(value: str | None) -> None:
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value

    return Flag(name, partial(os.environ.get, name), put, (wanted,))


def _reduction(dtype: str) -> Flag:
    """Return the flag of cuBLAS reductions in less than float32: (reduced, split k allowed)."""
    matmul = backends.cuda.matmul
    attribute = f"allow_{dtype}_reduced_precision_reduction"
    split_k = f"{attribute}_split_k"  # not in older releases

    def get() -> tuple[bool, bool]:
        return getattr(matmul, attribute), getattr(matmul, split_k, True)

    def put(value: tuple[bool, bool]) -> None:
        setattr(matmul, attribute, value if hasattr(matmul, split_k) else value[0])

    return Flag(f"cuda.matmul.{attribute}", get, put, ((False, True), (False, False)))


def _old_precision_flags() -> list[Flag]:
    """Return the flags that set TF32 by the old interface, which every torch has.

    They go first, for setting them also sets the new ones. Without them, code of others that reads
    them inside the block would get an error. `cuda.matmul.allow_tf32` is the first by another name.
    """
    precision = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    return [
        Flag("float32_matmul_precision", *precision, ("highest",)),
        _setting("backends.cudnn.allow_tf32", False),
    ]


def _new_precision_flags() -> list[Flag]:
    """Return the flags of the newer interface, one per backend and operation; older torch has none.

    Parents before children: a child that is not set reports, and follows, its parent.
    `mkldnn.fp32_precision` is left out, for setting it sets the outermost parent (torch 2.13).
    """
    if not hasattr(backends, "fp32_precision"):
        return []
    owners = ["", "cudnn.", "cuda.matmul.", "cudnn.conv.", "cudnn.rnn."]
    owners += ["mkldnn.matmul.", "mkldnn.conv.", "mkldnn.rnn."]
    return [_setting(f"backends.{owner}fp32_precision", "ieee", "none") for owner in owners]


def _reduction_flags() -> list[Flag]:
    flags = [_reduction("fp16"), _reduction("bf16")]
    if hasattr(backends.cuda.matmul, "allow_fp16_accumulation"):  # not in older releases
        flags.append(_setting("backends.cuda.matmul.allow_fp16_accumulation", False))
    return flags


def _deterministic_flags() -> list[Flag]:
    """Return the flags that choose deterministic kernels, and the thread count.

    The debug mode is `use_deterministic_algorithms` without its import of the compiler, which takes
    a second; 1 warns and 2 raises, so a process that asked for errors keeps them.
    """
    mode = torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode
    return [
        Flag("deterministic_debug_mode", *mode, (1, 2)),
        _setting("utils.deterministic.fill_uninitialized_memory"),
        _setting("backends.cudnn.deterministic", True),
        _setting("backends.cudnn.benchmark", False),
        Flag("threads", torch.get_num_threads, torch.set_num_threads, ()),
    ]


def _has_npu() -> bool:
    """Tell whether torch_npu is installed, without importing it: that fails without its driver."""
    return "torch_npu" in modules or find_spec("torch_npu") is not None


def environment_flags() -> list[Flag]:
    """Return the environment variables to set; those of the NPU only with torch_npu installed."""
    npu = {
        "HCCL_DETERMINISTIC": "true",
        "LCCL_DETERMINISTIC": "1",
        "ATB_MATMUL_SHUFFLE_K_ENABLE": "0",
    }
    wanted = {CUBLAS_WORKSPACE: CUBLAS_WANTED} | (npu if _has_npu() else {})
    return [_variable(name, value) for name, value in wanted.items()]


FLAGS: tuple[Flag, ...] = (
    *_old_precision_flags(),
    *_new_precision_flags(),
    *_reduction_flags(),
    *_deterministic_flags(),
)
"""Settings of torch, in the order in which they are set and restored."""

Stream = tuple[Callable[[], Any], Callable[[Any], object]]
"""How to read and how to set the state of one generator, or of one per device."""


def streams() -> list[Stream]:
    """Return the generators that a seed reaches; reading those of a device initialises it."""
    found: list[Stream] = [
        (random.getstate, random.setstate),
        (np.random.get_state, np.random.set_state),
        (torch.get_rng_state, torch.set_rng_state),
    ]
    for kind in ("cuda", "npu", "xpu"):
        device = getattr(torch, kind, None)
        if device is not None and device.is_available() and not device._is_in_bad_fork():
            found.append((device.get_rng_state_all, device.set_rng_state_all))
    if torch.mps.is_available():
        found.append((torch.mps.get_rng_state, torch.mps.set_rng_state))
    return found


@dataclass(frozen=True, slots=True)
class _Active:
    seed: int | None
    cublas: str


_active: list[_Active] = []


@contextmanager
def seeded(seed: int | None) -> Iterator[Mapping[str, object]]:
    """Compute deterministically while the block runs, and yield what is in force.

    Sets Python's, NumPy's global and torch's generators on every device to `seed`; None leaves them
    alone and sets the flags only. TF32 and reductions below float32 are off, cuDNN and torch choose
    deterministic kernels where they have them (torch warns where it has none), threads are pinned
    at their current number. All is restored at the end, also after an exception; blocks nest.

    `torch.utils.deterministic.fill_uninitialized_memory` stays as it is, on by default: memory that
    nobody wrote then reads the same each time. Attention kernels are not chosen here either, for
    another kernel is another computation. All of this belongs to the process: do not enter blocks
    from several threads at once.

    torch has no way back to "never set" for cuDNN's TF32: after the block it is on as before, but a
    later `torch.backends.fp32_precision` does not reach cuDNN any more.

    Raises:
        ConfigError: the seed is not an integer from 0 to 2**64 - 1.
    """
    _check(seed)
    with ExitStack() as stack:
        _active.append(_Active(seed, _cublas_state(inside=True)))
        stack.callback(_active.pop)
        _set_flags((*environment_flags(), *FLAGS), stack)
        if seed is not None:
            _seed_streams(seed, stack)
        yield determinism_facts()


def determinism_facts() -> dict[str, object]:
    """Return what decides, at this moment, whether the same computation gives the same bits.

    JSON-ready. `seed` is None outside `seeded()`; `environment` holds the variables that are set.
    """
    return {
        "seed": next((a.seed for a in reversed(_active) if a.seed is not None), None),
        "interop_threads": torch.get_num_interop_threads(),
        "cpu_capability": backends.cpu.get_cpu_capability(),
        "mkldnn": backends.mkldnn.is_available() and backends.mkldnn.enabled,
        "cublas_workspace": _cublas_state(inside=False),
        "environment": {k: os.environ[k] for k in ENVIRONMENT_OF_INTEREST if k in os.environ},
        **{flag.name: _plain(flag.read()) for flag in FLAGS},
    }


def _plain(value: Any) -> object:
    return list(value) if isinstance(value, tuple) else value


def _check(seed: object) -> None:
    if seed is None or (type(seed) is int and 0 <= seed < 2**64):
        return
    msg = f"seed must be an integer from 0 to 2**64 - 1, or None, not {seed!r}."
    raise ConfigError(msg)


def _cublas_state(*, inside: bool) -> str:
    """Say when the variable of cuBLAS was set, which reads it no later than CUDA starts."""
    if _active:
        return _active[-1].cublas
    if os.environ.get(CUBLAS_WORKSPACE) == CUBLAS_WANTED:
        return "set beforehand"
    if not inside:
        return "not set"
    return f"set {'after' if torch.cuda.is_initialized() else 'before'} CUDA was initialised"


def _set_flags(flags: Sequence[Flag], stack: ExitStack) -> None:
    """Set the flags in order; the stack restores those that changed, in the same order.

    Not in reverse: the old precision flags overwrite the new ones, and children follow parents, so
    both ways go from the general to the particular.
    """
    before = [flag.read() for flag in flags]
    for flag, value in zip(reversed(flags), reversed(before), strict=True):
        stack.callback(_restore, flag, value)
    for flag in flags:
        value = flag.read()
        if value != MIXED and value not in flag.wanted:
            flag.set(flag.wanted[0] if flag.wanted else value)


def _seed_streams(seed: int, stack: ExitStack) -> None:
    """Seed every generator after CUDA's variables are set, for reading its state starts CUDA."""
    for get, put in streams():
        stack.callback(put, get())
    random.seed(seed)
    np.random.seed(seed % 2**32)  # NumPy's global generator takes 32 bits
    torch.manual_seed(seed)


def _restore(flag: Flag, before: Any) -> None:
    if before != MIXED and flag.read() != before:
        flag.set(before)
