"""Does a model compute on a GPU or NPU what it computes on the CPU?

Run: ``python recipes/cpu_against_accelerator.py [MODEL] [OUT]`` on a machine with one; for an NPU
install torch_npu first. What to look at: the verdict, and the first module that differs. Without an
accelerator it says so, and the exit status is 2.
"""

import sys
from contextlib import suppress

import torch
from transformers import AutoTokenizer

from hf_dumper import DEMO_MODEL, DumpConfig, DumpingModel, FollowTokens, compare

PROMPT = "If you modify the Program, you must"


def accelerator() -> torch.device:
    """Return the accelerator of this machine, or end with a message."""
    with suppress(ImportError):
        import torch_npu  # noqa: F401 - makes torch know NPUs
    if not torch.accelerator.is_available():
        print("There is no GPU or NPU here that this torch can use.", file=sys.stderr)
        raise SystemExit(2)
    return torch.accelerator.current_accelerator()


def dump(model_path: str, out: str, device: str, follow: list[list[int]] | None = None) -> list:
    """Dump 8 tokens on a device; return them."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = DumpingModel.from_pretrained(
        model_path,
        dump_config=DumpConfig(out, "all", overwrite=True),
        tokenizer=tokenizer,
        dtype="float32",
        device_map=device,
    )
    inputs = tokenizer(PROMPT, return_tensors="pt").to(model.device)
    processors = [] if follow is None else [FollowTokens(follow)]
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, logits_processor=processors)
    model.dump.close()
    return ids[:, inputs["input_ids"].shape[1] :].tolist()


def main(model_path: str = DEMO_MODEL, out: str = "devices") -> None:
    """Dump on both, and compare."""
    device = accelerator()
    tokens = dump(model_path, f"{out}/cpu", "cpu")
    dump(model_path, f"{out}/{device.type}", device.type, tokens)

    found = compare(f"{out}/cpu", f"{out}/{device.type}")
    print(found.verdict)
    print(found.divergence or "no module differs beyond the limits")


if __name__ == "__main__":
    main(*sys.argv[1:])
