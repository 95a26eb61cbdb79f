"""Compare training with each engine: eager, compiled, and compiled in bfloat16.

    python benchmarks/engines.py            5 seeds on MNIST; about ten minutes on two cores
    python benchmarks/engines.py --quick    a test run on the bundled images

The model is that of `examples/mnist_svi.py --activation tanh` (784-500-20, dynamic binarization).
The maximal learning rate is 2e-3; the example uses 3e-3. For each seed, all engines start from the
same weights and use the same batches and noise. Compiled sums round differently, and training
amplifies the difference. Differences are paired by seed: the ELBO of the test data with the same
noise after the last epoch. Runs in engines.json are not repeated.
"""

import functools
import json
from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.optim.lr_scheduler import OneCycleLR
from typer import Option

import pyro_vae as pv

HIDDEN, LATENT_DIM, LEARNING_RATE = 500, 20, 2e-3
ENGINES: dict[str, dict[str, Any]] = {
    "eager": {"compile": False},
    "compiled": {"compile": True},
    "compiled, bf16": {"compile": True, "precision": "bf16"},
}


def train(
    engine: str, data: pv.data.Split, epochs: int, num_test: int, seed: int
) -> dict[str, Any]:
    """Return the validation curve and the ELBO of the test data, in nats per datum."""
    everything, test = data
    fitted, validation = everything.hold_out(len(everything) // 12)
    torch.manual_seed(seed)
    decoder = pv.networks.MLP(
        LATENT_DIM, [HIDDEN], fitted.event_shape, output_bias=fitted.log_odds()
    )
    vae = pv.VAE(
        pv.priors.StandardNormal(LATENT_DIM),
        pv.likelihoods.Bernoulli(decoder),
        pv.guides.DiagonalNormal(pv.networks.MLP(fitted.event_shape, [HIDDEN], 2 * LATENT_DIM)),
    )
    optimizer = functools.partial(torch.optim.Adam, lr=LEARNING_RATE, fused=True)
    fit = pv.fit(
        vae, fitted, validation=validation, epochs=epochs, optimizer=optimizer, seed=seed,
        schedule=lambda adam, steps: OneCycleLR(adam, LEARNING_RATE, total_steps=steps),
        **ENGINES[engine],
    )  # fmt: skip
    scores = pv.evaluate(vae, test.spread(num_test), num_samples=100, seed=0)
    curve = [entry["validation_elbo"] for entry in fit.history]
    return {
        "curve": curve,
        "test_elbo": float(scores.elbo.mean()),
        "engine": fit.settings["engine"],
    }


def show(runs: dict[str, dict[str, Any]], num_seeds: int, title: str) -> Table:
    """Return a table of the engines with their differences to the eager one."""
    table = Table("engine", "test ELBO", "against eager, paired", "largest")
    table.title = f"{title}, seeds 0 to {num_seeds - 1}"
    seeds = range(num_seeds)
    found = {e: np.array([runs[f"{e}, seed {s}"]["test_elbo"] for s in seeds]) for e in ENGINES}
    for engine, elbos in found.items():
        difference = elbos - found["eager"]
        mean, se = difference.mean(), difference.std(ddof=1) / num_seeds**0.5
        spread = f"{elbos.mean():.2f} ± {elbos.std(ddof=1) / num_seeds**0.5:.2f}"
        table.add_row(engine, spread, f"{mean:+.3f} ± {se:.3f}", f"{np.abs(difference).max():.3f}")
    return table


def main(
    epochs: Annotated[int, Option(help="Passes over the training data")] = 18,
    num_test: Annotated[int, Option(help="Number of test data to score")] = 10_000,
    num_seeds: Annotated[int, Option(min=2, help="Number of seeds, from 0 on")] = 5,
    quick: Annotated[bool, Option(help="Two epochs on the bundled images: a smoke test")] = False,
    data_root: Annotated[Path | None, Option(help="Folder, else $PYRO_VAE_DATA")] = None,
    out: Annotated[Path, Option(help="Folder for the picture and the JSON")] = Path("runs/engines"),
) -> None:
    """Train the missing runs; print the table and plot the curves."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "engines.json"
    name = "mnist-5k" if quick else "mnist"
    if quick:
        epochs, num_test, num_seeds = 2, 200, 2
    data = pv.data.load(name, binarize="dynamic", root=data_root)
    title = f"{data[0].name}, dynamic, {epochs} epochs, {num_test} test data"
    kept = json.loads(path.read_text()) if path.exists() else {}
    runs = kept.get(title, {})
    for seed in range(num_seeds):
        for engine in ENGINES:
            key = f"{engine}, seed {seed}"
            if key not in runs:
                runs[key] = train(engine, data, epochs, num_test, seed)
                path.write_text(json.dumps(kept | {title: runs}, indent=1) + "\n")
    Console(width=100).print(show(runs, num_seeds, title))
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for number, (engine, style) in enumerate(zip(ENGINES, ("-", "--", ":"), strict=True)):
        for seed in range(num_seeds):
            curve = runs[f"{engine}, seed {seed}"]["curve"]
            label = engine if seed == 0 else None
            axes.plot(range(1, epochs + 1), curve, style, color=f"C{number}", label=label, lw=1)
    axes.set(xlabel="epoch", ylabel="validation ELBO (nats per datum)")
    axes.set_title(title, fontsize=9)
    axes.legend()
    figure.savefig(out / "engines.png", dpi=110)


if __name__ == "__main__":
    typer.run(main)
