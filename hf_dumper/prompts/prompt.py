"""What a prompt is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Messages: TypeAlias = Sequence[Mapping[str, Any]]
"""A conversation: mappings with `role` and `content`, as chat templates take them."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One input of a model: a text, or the messages of a conversation.

    `id` is unique within its file where the file says so; else it is the number of the row, from 0.
    Exactly one of `text` and `messages` is given.
    """

    id: str
    text: str | None = None
    messages: Messages | None = None

    @property
    def shown(self) -> str:
        """The text, or what the last message says."""
        if self.text is not None:
            return self.text
        content = self.messages[-1].get("content") if self.messages else ""
        return content if isinstance(content, str) else str(content)
