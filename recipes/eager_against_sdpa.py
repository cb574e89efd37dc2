"""Do two attention implementations compute the same?

Run: ``python recipes/eager_against_sdpa.py [MODEL] [OUT]``. What to look at: the outputs of
``self_attn`` layer by layer; what comes before the first attention is the same to the bit.
"""

import sys

from transformers import AutoTokenizer

from hf_dumper import DEMO_MODEL, DumpConfig, DumpingModel, compare

PROMPT = "If you modify the Program, you must"


def dump(model_path: str, out: str, attention: str) -> None:
    """Dump the prefill with an attention implementation."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = DumpingModel.from_pretrained(
        model_path,
        dump_config=DumpConfig(out, overwrite=True),
        tokenizer=tokenizer,
        dtype="float32",
        attn_implementation=attention,
    )
    model(**tokenizer(PROMPT, return_tensors="pt"))
    model.dump.close()


def main(model_path: str = DEMO_MODEL, out: str = "attention") -> None:
    """Dump both, and compare."""
    for attention in ("eager", "sdpa"):
        dump(model_path, f"{out}/{attention}", attention)

    found = compare(f"{out}/eager", f"{out}/sdpa")
    print(found.verdict)
    for row in found.results.to_pylist():
        if row["module"].endswith("self_attn") and row["slot"].startswith("output"):
            print(f"{row['module']} {row['slot']}: {row['verdict']}, {row['rel_l2']:.2e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
