"""Make a golden dump over a dataset: every prompt is a run, with every tensor of every token.

Run: ``python recipes/golden_dump_of_a_dataset.py MODEL prompts.jsonl golden``; without arguments
the demo model and its own prompts are taken. What to look at: the table of runs, then
``hf-dumper inspect golden`` and ``hf-dumper trace golden``. Another time its runs are added.
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers import AutoTokenizer

from hf_dumper import DEMO_MODEL, DumpConfig, DumpingModel, open_dump

DEMO_PROMPTS = Path(DEMO_MODEL).parent / "demo_prompts.jsonl"


def dump_dataset(model_path: str, prompts: str, out: str, tokens: int, *, logits: bool) -> None:
    """Generate from the column "prompt" of a file; `logits` dumps the last logits only."""
    dataset = load_dataset("json", data_files=prompts, split="train")
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    config = DumpConfig(out, "all", dump_last_logits=logits)
    model = DumpingModel.from_pretrained(model_path, dump_config=config, tokenizer=tokenizer)
    for row in dataset:
        inputs = tokenizer(row["prompt"], return_tensors="pt")
        model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    model.dump.close()


def main() -> None:
    """Dump, and list the runs."""
    parser = argparse.ArgumentParser(description="Make a golden dump over a dataset.")
    parser.add_argument("model", nargs="?", default=DEMO_MODEL)
    parser.add_argument("prompts", nargs="?", default=str(DEMO_PROMPTS))
    parser.add_argument("out", nargs="?", default="golden")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--last-logits", action="store_true", help="keep the last logits only")
    args = parser.parse_args()
    dump_dataset(args.model, args.prompts, args.out, args.tokens, logits=args.last_logits)
    with open_dump(args.out) as dump:
        print(dump)
        for run in dump.runs():
            info = dump.run_info(run)
            count, prompt = len(info["generated_ids"][0]), info["prompt"]["text"][0]
            print(f"run {run}: {count} tokens from {prompt!r}")


if __name__ == "__main__":
    main()
