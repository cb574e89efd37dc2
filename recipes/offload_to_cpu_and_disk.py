"""Dump a model that does not fit: accelerate keeps layers elsewhere and loads them in turn.

Run: ``python recipes/offload_to_cpu_and_disk.py [MODEL] [OUT]``. What to look at: a dump of the
offloaded model is identical to that of the whole one, its weights included. Here the CPU computes,
so that it runs anywhere; with ``device_map="auto"`` accelerate fills GPU, memory and disk in turn.
"""

import sys

from accelerate import cpu_offload, disk_offload
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_dumper import DEMO_MODEL, DumpConfig, compare, register_hook

PROMPT = "If you modify the Program, you must"


def offloaded(model_path: str, folder: str) -> AutoModelForCausalLM:
    """Load a model whose layers lie in turn on the device, in memory beside it, on the disk."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype="float32")
    for i, layer in enumerate(model.model.layers):
        if i % 3 == 1:
            cpu_offload(layer, execution_device="cpu")
        elif i % 3 == 2:
            disk_offload(layer, f"{folder}/layer-{i}", execution_device="cpu")
    return model


def dump(model: AutoModelForCausalLM, model_path: str, out: str) -> None:
    """Dump two tokens and the weights."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    config = DumpConfig(out, "all", dump_weight=True, overwrite=True)
    with register_hook(model, config, tokenizer=tokenizer):
        model.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=2)


def main(model_path: str = DEMO_MODEL, out: str = "offload") -> None:
    """Dump the whole model and the offloaded one, and compare."""
    whole = AutoModelForCausalLM.from_pretrained(model_path, dtype="float32")
    dump(whole, model_path, f"{out}/whole")
    parted = offloaded(model_path, f"{out}/weights")
    elsewhere = sum(weight.is_meta for weight in parted.parameters())
    dump(parted, model_path, f"{out}/offloaded")

    print(f"{elsewhere} of {len(list(parted.parameters()))} parameters are not on the device")
    print(compare(f"{out}/whole", f"{out}/offloaded").verdict)


if __name__ == "__main__":
    main(*sys.argv[1:])
