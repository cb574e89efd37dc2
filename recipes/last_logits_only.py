"""Keep only the last logits of each token: all it takes to compare what two models would say.

Run: ``python recipes/last_logits_only.py [MODEL] [OUT]``. What to look at: how the dump holds one
row of logits per token and nothing of the layers, and how sure the model was of each token.
"""

import sys

import torch
from transformers import AutoTokenizer

from hf_dumper import DEMO_MODEL, DumpConfig, DumpingModel, open_dump

PROMPT = "If you modify the Program, you must"


def main(model_path: str = DEMO_MODEL, out: str = "logits") -> None:
    """Dump the logits, and print probability and text of each token."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    config = DumpConfig(out, "all", dump_last_logits=True, overwrite=True)
    model = DumpingModel.from_pretrained(model_path, dump_config=config, tokenizer=tokenizer)
    model.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=8, do_sample=False)
    model.dump.close()

    with open_dump(out) as dump:
        print(dump)
        for token, chosen in enumerate(dump.run_info()["generated_ids"][0]):
            logits = dump.load("root", "logits", token)  # [rows, vocabulary]
            probability = torch.softmax(logits[0].double(), dim=0)[chosen].item()
            print(f"token {token}: {probability:.3f} {tokenizer.decode([chosen])!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
