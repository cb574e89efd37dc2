"""A saved model to run commands with, and what they leave."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_dumper.store import NativeReader, open_dump

TEMPLATE = (
    "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('bad words') }}"
    "{% endif %}<{{ m.content }}>{% endfor %}"
)


def save_model(model, folder):
    """Save a model with a tokenizer whose ids are the codes of characters."""
    inner = Tokenizer(models.WordLevel({chr(i): i for i in range(128)}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=TEMPLATE)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def opened(path) -> NativeReader:
    reader = open_dump(path)
    assert isinstance(reader, NativeReader)
    return reader


def run_tiny(*more):
    return "run", "tiny", "--prompt", "one", "--max-new-tokens", 2, "--dump", "d", *more
