"""A script that dumped with msit_llm, after its one import was changed; the files are msit's.

Run: ``python recipes/from_msit_llm.py [MODEL] [OUT]``. Before, it read

    from msit_llm import DumpConfig, register_hook
    dump_config = DumpConfig(dump_path="dump", token_range=[0, 1])

What to look at: the .pth files at the places that tools for msit expect, and that the same folder
opens as a dump, too. The page docs/migrating-from-msit.md has every parameter.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_dumper import DEMO_MODEL, DumpConfig, open_dump, register_hook


def main(path: str = DEMO_MODEL, out: str = "dump") -> None:
    """Dump two tokens in msit's layout, and read the files back."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)

    dump_config = DumpConfig(dump_path=out, token_range=[0, 1], layout="msit")
    register_hook(model, dump_config)

    inputs = tokenizer("If you modify the Program, you must", return_tensors="pt")
    model.generate(**inputs, max_new_tokens=2)
    model.dump.close()

    files = sorted(Path(out).rglob("0/root.model.layers.0.mlp/*.pth"))
    for file in files:
        tensor = torch.load(file, weights_only=True)
        print(file.relative_to(out), list(tensor.shape))
    with open_dump(out) as dump:
        print(list(dump.load("model.layers.0.mlp", run=dump.runs()[-1]).shape), "by open_dump")


if __name__ == "__main__":
    main(*sys.argv[1:])
