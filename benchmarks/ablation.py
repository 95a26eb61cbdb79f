"""Ablation: what each part of the recipe `quick`, with tanh, adds to its scores on static MNIST.

    python benchmarks/ablation.py                   all variants, and the table of docs/records.md
    python benchmarks/ablation.py gated --seed 1    one variant
    python benchmarks/ablation.py --table           the table of the runs so far

Each variant differs from the first in one thing, and has the same epochs, batches and initial
seed. Scores are paired by image: the table has mean differences from the first, with their
standard errors over images, or over seeds if there are several. A finished variant is not run
again.
"""

import functools
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from records import clock, encoder_phase, leave_if_interrupted
from typer import Argument, Option

import pyro_vae as pv
from pyro_vae.models import suggestion

BASE = "tanh"
TANH: dict[str, object] = {"network": {"activation": "tanh"}}


@dataclass(frozen=True)
class Variant:
    """A change of the first variant.

    Attributes:
        description: The change.
        parts: Arguments of `pv.suggest` that replace those of the recipe.
        settings: Arguments of `pv.fit` that replace those of the recipe.
        warmup: Share of the steps in which the weight of the KL divergence grows.
        encoder_epochs: Epochs in which the encoder is then trained alone.
    """

    description: str
    parts: dict[str, object] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    warmup: float = 0.0
    encoder_epochs: int = 0


VAMP: Callable[..., object] = functools.partial(suggestion.vamp, num_pseudo_inputs=100)
VARIANTS = {
    BASE: Variant("1x500 tanh, z = 40, flow prior, one cycle, averaged weights"),
    "silu": Variant("SiLU in place of tanh (the recipe)",
                    parts={"network": {"activation": "silu"}}),
    "gelu": Variant("GELU", parts={"network": {"activation": "gelu"}}),
    "relu": Variant("ReLU", parts={"network": {"activation": "relu"}}),
    "normal": Variant("prior N(0, I) in place of the flow", parts={"prior": "standard-normal"}),
    "vamp": Variant("VampPrior, 100 pseudo-inputs, in place of the flow", parts={"prior": VAMP}),
    "constant": Variant("constant learning rate 1e-3, no schedule",
                        settings={"schedule": None, "learning_rate": 1e-3}),
    "no-average": Variant("last weights, not averaged", settings={"average": None}),
    "gated": Variant("gated layers", parts={"network": {"block": "gated"}}),
    "longer": Variant("21 epochs in place of 15", settings={"epochs": 21}),
    "two-layers": Variant("2x300 tanh", parts={"hidden": [300, 300]}),
    "warmup": Variant("weight of the KL divergence grows in the first tenth", warmup=0.1),
    "encoder": Variant("5 epochs more of the encoder alone, by the bound of 5 samples",
                       encoder_epochs=5),
}  # fmt: skip


def carry_out(name: str, seed: int, epochs: int, num_test: int, dataset: str, path: Path) -> None:
    """Train and score one variant; write its record and the scores of each image."""
    variant, recipe = VARIANTS[name], pv.recipes.RECIPES["quick"]
    train, test = pv.data.load(dataset, binarize="static")
    train, validation = train.hold_out(len(train) // 6)
    torch.manual_seed(seed)
    vae = recipe.build(train, show=False, **TANH | variant.parts)
    settings = recipe.settings(len(train), epochs=epochs) | variant.settings
    if variant.warmup:
        steps = epochs * -(-len(train) // settings["batch_size"])
        warmup = pv.objectives.Linear(max(1, round(variant.warmup * steps)))
        settings["objective"] = pv.objectives.Beta(warmup)
    started = clock("cpu")
    fit = pv.fit(vae, train, validation=validation, seed=seed, compile=True, **settings)
    leave_if_interrupted(fit)
    if variant.encoder_epochs:
        few = recipe.settings(len(train), epochs=variant.encoder_epochs)
        vae = encoder_phase(vae, train, seed=seed, **few)
    seconds = clock("cpu") - started
    scores = pv.evaluate(vae, test.spread(num_test), num_samples=200, seed=seed)
    np.savez(path.with_suffix(".npz"), elbo=scores.elbo, log_likelihood=scores.log_likelihood)
    record = {"variant": name, "seed": seed, "epochs": epochs, "seconds": seconds,
              **scores.metrics()}  # fmt: skip
    path.write_text(json.dumps(record, indent=1) + "\n")


def mean_and_error(values: list[np.ndarray]) -> tuple[float, float]:
    """Return the mean over images, and its standard error over seeds or, for one seed, images."""
    means = [float(each.mean()) for each in values]
    if len(means) > 1:
        return statistics.mean(means), statistics.stdev(means) / math.sqrt(len(means))
    return means[0], float(values[0].std(ddof=1)) / math.sqrt(len(values[0]))


def row_of(out: Path, name: str) -> str | None:
    """Return the row of a variant, of the seeds for which the first has finished, too."""
    stems = [path.stem for path in sorted(out.glob(f"{name}-[0-9]*.json"))]
    seeds = [stem.rpartition("-")[2] for stem in stems]
    seeds = [seed for seed in seeds if (out / f"{BASE}-{seed}.json").exists()]
    if not seeds:
        return None
    cells = [VARIANTS[name].description]
    for score in ("elbo", "log_likelihood"):
        ours, base = ([np.load(out / f"{n}-{s}.npz")[score] for s in seeds] for n in (name, BASE))
        if name == BASE:
            cells.append("{:.2f} ± {:.2f}".format(*mean_and_error(ours)))
        else:
            change = [a - b for a, b in zip(ours, base, strict=True)]
            cells.append("{:+.2f} ± {:.2f}".format(*mean_and_error(change)))
    ours, base = (
        [json.loads((out / f"{n}-{s}.json").read_text())["seconds"] for s in seeds]
        for n in (name, BASE)
    )
    ratio = statistics.median(a / b for a, b in zip(ours, base, strict=True))
    cells.append(f"{statistics.median(ours):.0f} s" if name == BASE else f"{ratio:.2f} of it")
    return f"| {' | '.join([*cells, ', '.join(seeds)])} |"


def table(out: Path) -> str:
    """Return the table of all finished variants as Markdown."""
    lines = ["| change | ELBO | log p(x) | processor time | seeds |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *filter(None, (row_of(out, name) for name in VARIANTS))])


def main(
    variants: Annotated[list[str] | None, Argument(help="Names of variants [default: all]")] = None,
    seed: Annotated[int, Option(help="Random seed")] = 0,
    epochs: Annotated[int, Option(help="Number of epochs")] = 15,
    num_test: Annotated[int, Option(help="Number of test images")] = 2000,
    dataset: Annotated[str, Option(help="mnist, or mnist-5k for a test run")] = "mnist",
    show_table: Annotated[bool, Option("--table", help="Print the table only")] = False,
    out: Annotated[Path, Option(help="Folder for all runs")] = Path("runs/ablation"),
) -> None:
    """Train and score variants; print the table of all that are finished."""
    unknown = [name for name in variants or () if name not in VARIANTS]
    if unknown:
        raise typer.BadParameter(f"unknown {unknown[0]!r}; expected one of {', '.join(VARIANTS)}")
    out.mkdir(parents=True, exist_ok=True)
    for name in () if show_table else variants or VARIANTS:
        path = out / f"{name}-{seed}.json"
        if not path.exists():
            print(f"{name}, seed {seed}", flush=True)
            carry_out(name, seed, epochs, num_test, dataset, path)
    print(table(out))


if __name__ == "__main__":
    typer.run(main)
