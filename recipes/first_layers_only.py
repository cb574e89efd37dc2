"""Dump only the first layers of a model: a small golden reference while a port is being written.

Run: ``python recipes/first_layers_only.py [MODEL] [LAYERS] [OUT]``. What to look at: the
layers that both have are identical; the comparison leaves out what comes after the cut.
"""

import sys

from transformers import AutoTokenizer

from hf_dumper import DEMO_MODEL, DumpConfig, DumpingModel, compare

PROMPT = "If you modify the Program, you must"


def dump(model_path: str, out: str, **options: int) -> None:
    """Dump the prefill; `num_hidden_layers` loads no more layers than that."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    config = DumpConfig(out, overwrite=True)
    model = DumpingModel.from_pretrained(
        model_path, dump_config=config, tokenizer=tokenizer, dtype="float32", **options
    )
    model(**tokenizer(PROMPT, return_tensors="pt"))
    model.dump.close()


def main(model_path: str = DEMO_MODEL, layers: str = "2", out: str = "layers") -> None:
    """Dump both, and compare what both have."""
    dump(model_path, f"{out}/whole")
    dump(model_path, f"{out}/first", num_hidden_layers=int(layers))
    found = compare(f"{out}/whole", f"{out}/first")
    print(f"{found.verdict}, {found.coverage['pairs']} tensors compared")
    for row in found.results.to_pylist():
        if row["module"].count(".") == 2 and row["slot"].startswith("output"):
            print(f"{row['module']}: {row['verdict']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
