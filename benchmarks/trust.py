"""How far the posterior of the default MNIST VAE can be trusted, on digits and other images.

    python benchmarks/trust.py                           trains first, a few minutes on two cores
    python benchmarks/trust.py --model runs/mnist_svi/model

The out-of-distribution images are Fashion-MNIST's test images or, if these are not available,
MNIST's rotated by 90 degrees. The results name the dataset.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from typer import Option

import pyro_vae as pv
from pyro_vae import plots

LIMIT = 0.7


def train(data, epochs, seed):
    """Train the VAE of `examples/mnist_svi.py`: 20 latents, 500 tanh units."""
    torch.manual_seed(seed)
    shape = data.event_shape
    decoder = pv.networks.MLP(20, [500], shape, output_bias=data.log_odds())
    vae = pv.VAE(
        prior=pv.priors.StandardNormal(20),
        likelihood=pv.likelihoods.Bernoulli(decoder),
        guide=pv.guides.DiagonalNormal(pv.networks.MLP(shape, [500], 2 * 20)),
    )
    pv.fit(vae, data, epochs=epochs, batch_size=128, seed=seed)
    return vae


def out_of_distribution(digits, root):
    """Return Fashion-MNIST's test images, or else the rotated digits."""
    try:
        return pv.data.fashion_mnist(root=root, seed=digits.seed)[1]
    except pv.data.DataNotFoundError as error:
        print(f"using digits rotated by 90 degrees instead of Fashion-MNIST: {error}")
        turned = digits.values.rot90(1, dims=(-2, -1))
        return dataclasses.replace(digits, values=turned, name=f"{digits.name} turned")


def with_error(values, statistic, seed=0):
    """Return a statistic over data and its bootstrap standard error."""
    draw = np.random.default_rng(seed).choice
    again = [statistic(draw(values, len(values))) for _ in range(500)]
    return [float(statistic(values)), float(np.std(again, ddof=1))]


def study(vae, data, num_samples, num_gaps, seed):
    """Score one dataset; return the figures, the card and the gaps of the first data."""
    options = {"num_samples": num_samples, "seed": seed}
    times = [time.perf_counter()]
    card = pv.diagnose(vae, data, num_gap_data=0, num_simulations=0, **options)
    times.append(time.perf_counter())
    split = pv.gaps(vae, data[:num_gaps], **options)
    times.append(time.perf_counter())
    scores = {name: values.to_numpy() for name, values in card.per_datum.data_vars.items()}
    figures = {
        "num_data": len(data),
        "share of k-hat above the limit": with_error(scores["khat"] > LIMIT, np.mean),
        "median k-hat": with_error(scores["khat"], np.median),
        "median ess": with_error(scores["ess"], np.median),
        "log p(x)": with_error(scores["log_likelihood"], np.mean),
        "active units": int(card.latents.active.sum()),
        "median approximation gap": with_error(split.approximation, np.median),
        "median amortization gap": with_error(split.amortization, np.median),
        "seconds for the card, for the gaps": np.diff(times).tolist(),
    }
    return figures, card, split


def main(
    data_root: Annotated[Path | None, Option(help="Folder with the data")] = None,
    model: Annotated[Path | None, Option(help="A saved VAE [default: train one]")] = None,
    epochs: int = 18,
    num_samples: Annotated[int, Option(help="K, samples for each image")] = 1000,
    num_data: Annotated[int | None, Option(help="Number of images [default: all]")] = None,
    num_gaps: Annotated[int, Option(help="Number of images for the gaps")] = 1000,
    seed: int = 0,
    out: Path = Path("runs/trust"),
    quick: Annotated[bool, Option(help="A few images: a smoke test")] = False,
) -> None:
    """Write figures and pictures of both datasets to --out."""
    out.mkdir(parents=True, exist_ok=True)
    if quick:
        epochs, num_data, num_gaps = 1, 100, 10
    digits, test = pv.data.load("mnist", root=data_root, seed=seed)
    vae = pv.load(model) if model else train(digits, epochs, seed)
    results = {"K": num_samples, "num_gaps": num_gaps, "seed": seed}
    histogram = Figure(figsize=(6, 3.5), layout="constrained")
    axes = histogram.add_subplot(xlabel="k-hat", ylabel="density")
    for stem, data in (("digits", test), ("others", out_of_distribution(test, data_root))):
        chosen = dataclasses.replace(data, values=data.values[:num_data], labels=None)
        results[data.name], card, split = study(vae, chosen, num_samples, num_gaps, seed)
        khat, worst = card.per_datum["khat"].to_numpy(), card.worst(20)
        axes.hist(khat, bins=40, density=True, alpha=0.6, label=data.name)
        title = f"{data.name}: the highest k-hat, {khat[worst[-1]]:.2f} and above"
        figure = plots.image_grid(chosen[torch.from_numpy(worst)], title, 10)
        figure.savefig(out / f"worst-{stem}.png")
        figure = plots.gaps(split.approximation, split.amortization, f"{data.name}: the gaps")
        figure.savefig(out / f"gaps-{stem}.png")
        (out / "trust.json").write_text(json.dumps(results, indent=1) + "\n")
    axes.axvline(LIMIT, color="0.3", linestyle="--", label=f"the limit, {LIMIT}")
    axes.legend()
    histogram.savefig(out / "khat.png")


if __name__ == "__main__":
    typer.run(main)
