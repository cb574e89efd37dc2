"""Which weights differ between two checkpoints, and by how much?

Run: ``python recipes/weights_of_two_checkpoints.py MODEL OTHER [OUT]``; without arguments the demo
model is compared with a copy of itself in which one weight was changed. What to look at: the list
of names with the relative error of each; weights of equal values are not listed.
"""

import sys

import torch
from transformers import AutoModelForCausalLM

from hf_dumper import DEMO_MODEL, DumpConfig, open_dump, register_hook

Model = torch.nn.Module


def dump_weights(model: Model, out: str) -> None:
    """Dump the weights, and the output of one module: a dump must hold a run."""
    config = DumpConfig(out, dump_weight=True, overwrite=True)
    with register_hook(model, config), torch.no_grad():
        model(torch.tensor([[1]]))


def differences(golden: str, candidate: str) -> dict[str, float]:
    """Return name -> relative error of the weights that differ; inf where one side lacks it."""
    with open_dump(golden) as ours, open_dump(candidate) as theirs:
        weights, others = ours.weights(), theirs.weights()
        found = {name: float("inf") for name in weights.keys() ^ others.keys()}
        for name in weights.keys() & others.keys():
            a, b = weights[name].double(), others[name].double()
            error = float("inf") if a.shape != b.shape else ((a - b).norm() / a.norm()).item()
            if error:
                found[name] = error
    return found


def changed_demo() -> Model:
    """Return the demo model with one weight scaled by 1.01."""
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype="float32")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.mul_(1.01)
    return model


def main(golden: str = DEMO_MODEL, candidate: str | None = None, out: str = "weights") -> None:
    """Dump the weights of both, and list what differs."""
    load = AutoModelForCausalLM.from_pretrained
    dump_weights(load(golden, dtype="float32"), f"{out}/golden")
    other = changed_demo() if candidate is None else load(candidate, dtype="float32")
    dump_weights(other, f"{out}/candidate")
    found = differences(f"{out}/golden", f"{out}/candidate")
    for name, error in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{error:.3g}  {name}")
    print(f"{len(found)} weights differ")


if __name__ == "__main__":
    main(*sys.argv[1:])
