"""Does a model in bfloat16 still compute what it does in float32?

Run: ``python recipes/bf16_against_fp32.py [MODEL] [OUT]``. What to look at: the verdict (limits
know how finely bfloat16 resolves) and the modules that are farthest apart. The candidate follows
the golden tokens, so that every token can be compared even where it would have chosen another.
"""

import sys

import pyarrow.compute as pc
from transformers import AutoTokenizer

from hf_dumper import DEMO_MODEL, DumpConfig, DumpingModel, FollowTokens, compare

PROMPT = "If you modify the Program, you must"


def dump(model_path: str, out: str, dtype: str, follow: list[list[int]] | None = None) -> list:
    """Dump 8 tokens in a dtype; return them."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    config = DumpConfig(out, "all", overwrite=True)
    model = DumpingModel.from_pretrained(
        model_path, dump_config=config, tokenizer=tokenizer, dtype=dtype
    )
    inputs = tokenizer(PROMPT, return_tensors="pt")
    processors = [] if follow is None else [FollowTokens(follow)]
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, logits_processor=processors)
    model.dump.close()
    return ids[:, inputs["input_ids"].shape[1] :].tolist()


def main(model_path: str = DEMO_MODEL, out: str = "dtypes") -> None:
    """Dump both, and compare."""
    tokens = dump(model_path, f"{out}/float32", "float32")
    dump(model_path, f"{out}/bfloat16", "bfloat16", tokens)

    found = compare(f"{out}/float32", f"{out}/bfloat16")
    print(found.verdict, f"first at {found.divergence.module}" if found.divergence else "")
    outputs = found.results.filter(pc.starts_with(found.results["slot"], "output"))
    for row in outputs.sort_by([("rel_l2", "descending")]).slice(0, 5).to_pylist():
        print(f"token {row['token']} {row['module']}: relative error {row['rel_l2']:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
