"""Prompts to ids."""

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_dumper.errors import PromptError
from hf_dumper.prompts import Prompt, encode

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}:{% endif %}"
)


@pytest.fixture
def tokenizer():
    """Return a tokenizer whose ids are the codes of characters."""
    inner = Tokenizer(models.WordLevel({chr(i): i for i in range(128)}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=TEMPLATE)


def ids(encoded):
    return "".join(map(chr, encoded["input_ids"][0].tolist()))


def test_a_text_becomes_one_row_without_token_types(tokenizer):
    encoded = encode(tokenizer, Prompt("0", text="abc"))
    assert ids(encoded) == "abc"
    assert encoded.keys() == {"input_ids", "attention_mask"}


def test_a_text_is_what_the_user_says(tokenizer):
    assert ids(encode(tokenizer, Prompt("0", text="abc"), chat=True)) == "<abc>:"


def test_messages_go_through_the_template(tokenizer):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert ids(encode(tokenizer, Prompt("0", messages=messages), chat=True)) == "<a><b>:"


def test_messages_need_chat(tokenizer):
    with pytest.raises(PromptError, match="'7' is a conversation"):
        encode(tokenizer, Prompt("7", messages=[{"role": "user", "content": "a"}]))


def test_a_refusal_of_the_template_is_one_line(tokenizer):
    messages = [{"role": "system", "content": "a"}]
    with pytest.raises(PromptError, match="refuses prompt '7': no system"):
        encode(tokenizer, Prompt("7", messages=messages), chat=True)


def test_no_template_is_said(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(PromptError, match="no chat template"):
        encode(tokenizer, Prompt("0", text="abc"), chat=True)


def test_a_prompt_of_no_tokens_is_refused(tokenizer):
    with pytest.raises(PromptError, match="'7' has no tokens"):
        encode(tokenizer, Prompt("7", text=""))


def test_a_refusal_of_the_tokenizer_is_one_line(tokenizer):
    with pytest.raises(PromptError, match="The tokenizer refuses prompt '7': "):
        encode(tokenizer, Prompt("7", text="\ud800"))
