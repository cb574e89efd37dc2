"""Prompts to token ids."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence

from hf_dumper.errors import PromptError
from hf_dumper.prompts.prompt import Messages, Prompt


def encode(tokenizer: Any, prompt: Prompt, chat: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors [1, length] that `generate()` takes for a prompt.

    With `chat` the prompt goes through the tokenizer's chat template, up to where the assistant
    begins to speak; a text is then what the user says.

    `token_type_ids` are left out: `generate()` refuses them where the model takes none, and the
    zeros that a single text gets are the default where it does.

    Raises:
        PromptError: messages without `chat`, a tokenizer without a template, messages that the
            template refuses, or a prompt of no tokens.
    """
    if chat:
        encoded = _apply_template(tokenizer, prompt)
    elif prompt.text is None:
        msg = f"Prompt {prompt.id!r} is a conversation. Turn it into text with chat=True (--chat)."
        raise PromptError(msg)
    else:
        encoded = _tokenized(tokenizer, prompt)
    tensors = {name: value for name, value in encoded.items() if name != "token_type_ids"}
    if not tensors["input_ids"].numel():
        msg = f"Prompt {prompt.id!r} has no tokens; write some text into it."
        raise PromptError(msg)
    return tensors


def pad(
    rows: Sequence[Mapping[str, torch.Tensor]], token: int, *, left: bool = True
) -> dict[str, torch.Tensor]:
    """Join encoded prompts to a batch [rows, longest]; `token` fills the room, the mask is 0 there.

    A model that generates goes on from the last column, so the room is on the `left`; an encoder
    that counts positions from the first column wants it on the right.
    """
    side = "left" if left else "right"
    filled = {"input_ids": token}
    if len(rows) > 1:
        rows = [{"attention_mask": torch.ones_like(row["input_ids"]), **row} for row in rows]
    return {
        name: pad_sequence(
            [row[name][0] for row in rows],
            batch_first=True,
            padding_value=filled.get(name, 0),
            padding_side=side,
        )
        for name in rows[0]
    }


def _tokenized(tokenizer: Any, prompt: Prompt) -> Any:
    try:
        return tokenizer(prompt.text, return_tensors="pt")
    except Exception as error:  # such as a text of half a character, which JSON can hold
        msg = f"The tokenizer refuses prompt {prompt.id!r}: {str(error) or repr(error)}"
        raise PromptError(" ".join(msg.split())) from error


def _apply_template(tokenizer: Any, prompt: Prompt) -> dict[str, torch.Tensor]:
    if not getattr(tokenizer, "chat_template", None):
        msg = "This tokenizer has no chat template. Leave chat (--chat) out, or take a chat model."
        raise PromptError(msg)
    messages: Messages = prompt.messages or [{"role": "user", "content": prompt.text}]
    try:
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    except Exception as error:  # a template is a program of the tokenizer's maker: anything
        msg = f"The chat template refuses prompt {prompt.id!r}: {str(error) or repr(error)}"
        raise PromptError(" ".join(msg.split())) from error
    return cast("dict[str, torch.Tensor]", encoded)
