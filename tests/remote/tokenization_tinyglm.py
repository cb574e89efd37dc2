import json
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizer


class TinyGLMTokenizer(PreTrainedTokenizer):
    """A token is a character; the mask it makes is [1, query, key], True for what is hidden."""

    vocab_files_names = {"vocab_file": "tiny_vocab.json"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask", "position_ids"]  # noqa: RUF012

    def __init__(self, vocab_file, padding_side="left", **kwargs):
        self.vocab = json.loads(Path(vocab_file).read_text())
        self.characters = {i: c for c, i in self.vocab.items()}
        super().__init__(padding_side=padding_side, **kwargs)

    @property
    def vocab_size(self):
        return len(self.vocab)

    def get_vocab(self):
        return dict(self.vocab)

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.vocab.get(token, self.vocab["?"])

    def _convert_id_to_token(self, index):
        return self.characters.get(index, "?")

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)

    def save_vocabulary(self, save_directory, filename_prefix=None):
        path = Path(save_directory, "tiny_vocab.json")
        path.write_text(json.dumps(self.vocab))
        return (str(path),)

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [*token_ids_0, self.vocab["[gMASK]"], self.vocab["<sop>"]]

    def _pad(self, encoded_inputs, max_length=None, **kwargs):
        ids = encoded_inputs["input_ids"]
        length = len(ids)
        context, gmask = ids.index(self.vocab["<sop>"]), ids.index(self.vocab["[gMASK]"])
        mask = np.tril(np.ones((1, length, length)))
        mask[:, :, :context] = 1
        places = np.arange(length)
        places[context:] = gmask
        blocks = np.concatenate([np.zeros(context, int), np.arange(1, length - context + 1)])
        room = max(0, (max_length or length) - length)
        encoded_inputs["attention_mask"] = np.pad(
            mask < 0.5, [(0, 0), (room, 0), (room, 0)], constant_values=True
        )
        encoded_inputs["position_ids"] = np.pad(np.stack([places, blocks]), [(0, 0), (room, 0)])
        encoded_inputs["input_ids"] = [self.vocab["<pad>"]] * room + ids
        return encoded_inputs
