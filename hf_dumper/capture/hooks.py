"""What hooks write to, and the hooks of one module: the plain twin of the compiled `_hooks`."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

Call = tuple[int, int]
"""Number of a module's call in the forward, and its place in the forward's list of calls."""


class Intake:
    """What the hooks of one session share: switches, numbers, memory, and where the rest is done.

    Attributes:
        recording: Whether hooks do anything.
        inputs, outputs: Whether arguments, and what is returned, are taken.
        check_device: Whether each tensor's device must be looked at.
        stamp: Changes with every forward, so that a tap counts its calls from 0 again.
        sequence: Next number in the run's one order of entries and completions.
        calls: seq_in and seq_out of every module call of the forward in turn, -1 until it returns.
        rows: Records that were taken and did not leave yet: (description, number of the call,
            place of the call, offset of the copy or None without one, hash if it is known). A
            record with a hash alone has bytes that were seen before in the forward, or are not
            wanted; one with neither is skipped.
        batch: Length of `rows` at which they are pushed.
        address, used, size: Memory for copies: where it begins, how full it is, how long.
        large: Bytes from which a tensor is hashed before it is copied.
        epoch: Changes with the sizes of the forward, on which descriptions depend.
        not_tensors: Numbers of plain values met instead of tensors, by class.
        plain: Classes of values that are no tensors and hold none.
        describe, make_room, push, take, take_large: The functions of a Snapshot that do what is
            not common.
        fail: Takes an exception of our own making: it must never reach the model.
    """

    __slots__ = (
        "address",
        "batch",
        "calls",
        "check_device",
        "describe",
        "epoch",
        "fail",
        "inputs",
        "large",
        "make_room",
        "not_tensors",
        "outputs",
        "plain",
        "push",
        "recording",
        "rows",
        "sequence",
        "size",
        "stamp",
        "take",
        "take_large",
        "used",
    )

    recording: bool
    inputs: bool
    outputs: bool
    check_device: bool
    stamp: int
    sequence: int
    epoch: int
    batch: int
    large: int
    address: int
    used: int
    size: int
    calls: list[int]
    rows: list[tuple[Any, ...]]
    not_tensors: dict[type, int]
    plain: set[type]
    describe: Callable[..., Any]
    make_room: Callable[[int], None]
    push: Callable[[], None]
    take: Callable[..., None]
    take_large: Callable[..., None]
    fail: Callable[[Exception], None]

    def __init__(self) -> None:
        """Take nothing, and have no memory."""
        self.recording = self.inputs = self.outputs = self.check_device = False
        self.stamp = self.sequence = self.epoch = self.batch = self.large = 0
        self.address = self.used = self.size = 0


class Tap:
    """The two hooks of one module. They return None, so the model sees nothing of them."""

    intake: Intake | None = None

    def __init__(self, source: tuple[str, str], params: tuple[str, ...], intake: Intake) -> None:
        """Prepare for a module: its name and class, the parameters of its forward."""
        self.source = source
        self.params = params
        self.intake = intake
        self.stamp = -1
        self.calls = 0
        self.open: list[tuple[int, int, int]] = []

    def before(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the inputs; a forward pre-hook with keyword arguments."""
        intake = self.intake
        if intake is None or not intake.recording:
            return
        try:
            if self.stamp != intake.stamp:
                self.stamp, self.calls = intake.stamp, 0
                self.open.clear()
            call = (self.calls, len(intake.calls) // 2)
            self.calls += 1
            intake.calls += (intake.sequence, -1)
            intake.sequence += 1
            self.open.append((*call, intake.stamp))
            if intake.inputs:
                self._take_inputs(intake.take, args, kwargs, call)
        except Exception as error:  # whatever we did wrong, the model must go on
            intake.fail(error)

    def after(self, _module: Any, _args: Any, output: Any) -> None:
        """Record the outputs; a forward hook."""
        intake = self.intake
        if intake is None or not intake.recording or not self.open:
            return
        try:
            number, index, stamp = self.open.pop()
            if stamp != intake.stamp:
                return
            if intake.outputs:
                intake.take(self.source, "output", "", (number, index), output)
            intake.calls[2 * index + 1] = intake.sequence
            intake.sequence += 1
        except Exception as error:  # as above
            intake.fail(error)

    def _take_inputs(
        self,
        take: Callable[..., None],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        call: Call,
    ) -> None:
        source, params = self.source, self.params
        for i, argument in enumerate(args):
            take(source, input_slot(i), params[i] if i < len(params) else "", call, argument)
        for name, argument in kwargs.items():
            take(source, input_slot(name), name, call, argument)


@lru_cache(maxsize=4096)
def input_slot(key: int | str) -> str:
    """Return the slot of a positional or keyword argument."""
    return f"input.{key}"
