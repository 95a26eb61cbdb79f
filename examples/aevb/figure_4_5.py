"""Figures 4 and 5: the manifold of two latents, and samples at 2, 5, 10 and 20 dimensions.

    python examples/aevb/figure_4_5.py                   1e6 samples a model
    python examples/aevb/figure_4_5.py --samples 1e7     sharper
    python examples/aevb/figure_4_5.py --quick           a test run of a few seconds

figure_4.png shows E[x|z] for a grid of the unit square, mapped to z by the inverse normal CDF so
that every cell has the same prior mass, for Frey Face (a) and MNIST (b). Neighbours are similar,
and all classes or expressions are on one plane. figure_5.png shows E[x|z] for z ~ p(z) on MNIST.
With more latents the digits are sharper, and fewer are between two classes.

Trained as in figure_2.py: AEVB with estimator B (eq. 10), 500 hidden units (Frey Face: 200). The
paper does not give the optimizer and budget of these figures; the default is Adagrad at 0.02.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import paper
import torch
import typer
from matplotlib.figure import Figure
from pyro.infer import TraceMeanField_ELBO
from rich import print
from scipy.stats import norm
from torch import Tensor
from typer import Option

import pyro_vae as pv

SIDE = 20  # images along each side of a manifold
SHOWN = 10  # images along each side of a panel of samples


def manifold(vae: pv.VAE) -> Tensor:
    """Return E[x|z] over the quantiles of p(z), shape `(SIDE, SIDE, *event)`; z_2 points up."""
    quantiles = torch.tensor(norm.ppf((np.arange(SIDE) + 0.5) / SIDE), dtype=torch.float32)
    z2, z1 = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    with torch.no_grad():
        return vae.decode(torch.stack([z1, z2], dim=-1)).mean


def samples_of(vae: pv.VAE) -> Tensor:
    """Return E[x|z] for z ~ p(z), shape `(SHOWN, SHOWN, *event)`."""
    with torch.no_grad():
        return vae.decode(vae.model.prior().sample((SHOWN, SHOWN))).mean


def panels(images: dict[str, Tensor]) -> Figure:
    """Plot mosaics of shape `(rows, columns, 1, height, width)` in one row, titled (a), (b)..."""
    figure = Figure(figsize=(4 * len(images), 4.6), layout="constrained")
    for place, (title, cells) in enumerate(images.items()):
        rows, columns, _, height, width = cells.shape
        picture = cells[:, :, 0].transpose(1, 2).reshape(rows * height, columns * width)
        axes = figure.add_subplot(1, len(images), place + 1)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(f"({'abcdef'[place]}) {title}")
    return figure


def main(
    samples: paper.Samples = 1e6,
    quick: paper.Quick = False,
    optimizer: paper.OptimizerName = "adagrad",
    step_size: Annotated[float, Option(help="Step size of the optimizer")] = 0.02,
    init_sd: paper.InitSd = 0.1,
    binarize: paper.Binarize = "dynamic",
    data_root: paper.DataRoot = None,
    seed: paper.Seed = 0,
    out: paper.Out = Path("runs/aevb/figure_4_5"),
) -> None:
    """Train a model for each panel, and arrange the panels as in the paper."""
    samples = min(samples, 5e3) if quick else samples
    curves: list[dict[str, Any]] = []

    def trained(name: str, latent_dim: int) -> pv.VAE:
        train, test = paper.load(name, quick, data_root, binarize, seed)
        hidden = 100 if quick else paper.HIDDEN[name]
        torch.manual_seed(seed)
        vae = paper.build(train, latent_dim, hidden, init_sd)
        optim = paper.optimizer(optimizer, step_size, vae, len(train))
        options = {"latent_dim": latent_dim, "hidden": hidden, "init_sd": init_sd}
        options |= {"optimizer": optimizer, "step_size": step_size}
        curve = paper.settings(train, samples, seed, **options) | {"seen": [], "test": []}
        loss = TraceMeanField_ELBO()
        for seen in paper.algorithm_1(vae, train, int(samples), optim, loss, seed, points=10):
            curve["seen"].append(seen)
            curve["test"].append(paper.bound(vae, test, 1000))
        curves.append(curve)
        paper.write(out / "figure_4_5.json", curves)
        print(f"{train.name}, N_z = {latent_dim}: {curve['test'][-1]:.1f} nats per test datum")
        return vae

    figure_4 = {}
    try:
        figure_4["learned Frey Face manifold"] = manifold(trained("frey", 2))
    except pv.data.DataNotFoundError as error:
        print(f"Figure 4 shows MNIST alone, without Frey Face: {error}")
    models = {latent_dim: trained("mnist", latent_dim) for latent_dim in (2, 5, 10, 20)}
    figure_4["learned MNIST manifold"] = manifold(models[2])
    panels(figure_4).savefig(out / "figure_4.png", dpi=200)
    figure_5 = {f"{dim}-D latent space": samples_of(vae) for dim, vae in models.items()}
    panels(figure_5).savefig(out / "figure_5.png", dpi=200)


if __name__ == "__main__":
    typer.run(main)
