"""Plot statistics of every layer over the generated tokens; outliers and drifts show at once.

Run: ``python recipes/statistics_as_plots.py [MODEL] [OUT]``, after ``pip install
"hf_dumper[plots]"``. What to look at: ``OUT/statistics.png``, a line per layer of the largest
magnitude and of the standard deviation of what leaves it. No tensor is stored, only statistics.
"""

import sys

import matplotlib as mpl
import pyarrow.compute as pc
from transformers import AutoTokenizer

from hf_dumper import DEMO_MODEL, DumpConfig, DumpingModel, open_dump

PROMPT = "If you modify the Program, you must"
TOKENS = 16


def dump(model_path: str, out: str) -> None:
    """Dump the statistics of the outputs of all decoder layers."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    what = {"layer_name": "model.layers.*", "tensor_part": 1, "dump_statistics_mode": 1}
    config = DumpConfig(out, "all", **what, overwrite=True)
    model = DumpingModel.from_pretrained(model_path, dump_config=config, tokenizer=tokenizer)
    model.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=TOKENS)
    model.dump.close()


def plot(path: str, image: str) -> list[str]:
    """Draw the statistics of a dump into a file; return the names of the modules."""
    mpl.use("Agg")
    from matplotlib import pyplot

    with open_dump(path) as reader:
        table = reader.statistics()
    layers = table.filter(pc.match_substring_regex(table["module"], r"^model\.layers\.\d+$"))
    names = pc.unique(layers["module"]).to_pylist()
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, statistic in zip(axes, ("absmax", "std"), strict=True):
        for name in names:
            rows = layers.filter(pc.equal(layers["module"], name)).sort_by("token")
            axis.plot(rows["token"].to_pylist(), rows[statistic].to_pylist(), ".-", label=name)
        axis.set(title=statistic, xlabel="token", yscale="log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(image, dpi=120)
    pyplot.close(figure)
    return names


def main(model_path: str = DEMO_MODEL, out: str = "statistics") -> None:
    """Dump, and plot."""
    dump(model_path, f"{out}/dump")
    names = plot(f"{out}/dump", f"{out}/statistics.png")
    print(f"{len(names)} layers over {TOKENS} tokens: {out}/statistics.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
