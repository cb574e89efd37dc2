"""What a forked process does with the sessions that it finds in its memory: it leaves them alone.

A child has a copy of the hooked model and of the session, but not the thread that writes, and the
dump is its parent's. So its sessions let go of their models, without a word to the dump.
"""

import os
from typing import Protocol
from weakref import WeakSet


class Forgettable(Protocol):
    """What is asked of a session."""

    def forget(self) -> None:
        """Leave the model, and do nothing more."""


_sessions: WeakSet[Forgettable] = WeakSet()


def forget_when_forked(session: Forgettable) -> None:
    """Let a session forget its model in every process that is forked from this one."""
    _sessions.add(session)


def _forget_all() -> None:
    for session in tuple(_sessions):
        session.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
