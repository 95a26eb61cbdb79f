"""The limit of section 4: with a linear decoder, the method is principal component analysis.

    python examples/aevb/pca.py            MNIST, grey
    python examples/aevb/pca.py --quick    a test run of a few seconds

The paper notes that PCA is the maximum likelihood solution (Roweis 1998) of

    p(z) = N(0, I),   p(x|z) = N(x; W z + mu, s2 I)   for s2 -> 0.

For any s2 it is probabilistic PCA, W = U (L - s2 I)^(1/2) R with the leading eigenvectors U and
eigenvalues L of the covariance of the data (Tipping & Bishop 1999). A linear encoder can represent
the exact posterior, and a diagonal q(z|x) also fixes the rotation R (Lucas et al. 2019): the
columns of W are then the scaled principal components. The script plots the decoder's columns,
sorted by length, with those of PCA, and prints the angles between the two subspaces.
"""

from pathlib import Path
from typing import Annotated

import paper
import torch
import typer
from matplotlib.figure import Figure
from pyro.infer import TraceMeanField_ELBO
from rich import print
from torch import Tensor
from typer import Option

import pyro_vae as pv


def principal_components(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return unit vectors U, shape `(dim, count)`, and all variances along them, leading first."""
    _, singular, rows = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    return rows[:count].T, singular.square() / len(x)


def maximum_likelihood(x: Tensor, latent_dim: int) -> tuple[Tensor, Tensor]:
    """Return W, shape `(dim, latent_dim)`, and s2 of probabilistic PCA in closed form, at R = I.

    Tipping & Bishop (1999), eqs. 7 and 8, for more data than dimensions.
    """
    directions, variances = principal_components(x, latent_dim)
    noise = variances[latent_dim:].mean()
    return directions * (variances[:latent_dim] - noise).sqrt(), noise


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Return the principal angles between the columns' spans, in degrees, the smallest first."""
    bases = (torch.linalg.qr(matrix.double()).Q for matrix in (a, b))
    cosines = torch.linalg.svdvals(next(bases).T @ next(bases))
    return cosines.clamp(max=1).arccos().rad2deg()


def linear_vae(x: Tensor, latent_dim: int) -> pv.VAE:
    """Return probabilistic PCA as a VAE: no hidden layer, one learned noise scale for all of x."""
    dim = x.shape[1]
    vae = pv.VAE(
        prior=pv.priors.StandardNormal(latent_dim),
        likelihood=pv.likelihoods.Normal(pv.networks.MLP(latent_dim, [], (dim,))),
        guide=pv.guides.DiagonalNormal(pv.networks.MLP((dim,), [], 2 * latent_dim)),
    )
    return vae.to(x.dtype)


def decoder_matrix(vae: pv.VAE) -> Tensor:
    """Return W, shape `(dim, latent_dim)`, its columns sorted by length, the longest first."""
    weight = vae.model.likelihood.decoder.layers[-1].weight.detach()
    return weight[:, weight.norm(dim=0).argsort(descending=True)]


def main(
    samples: paper.Samples = 3e6,
    quick: paper.Quick = False,
    latent_dim: Annotated[int, Option(min=1, help="N_z")] = 8,
    step_size: Annotated[float, Option(help="Step size of Adam, annealed to 0 by a cosine")] = 3e-3,
    data_root: paper.DataRoot = None,
    seed: paper.Seed = 0,
    out: paper.Out = Path("runs/aevb/pca"),
) -> None:
    """Train a linear VAE, and compare its decoder with the principal components."""
    if quick:
        samples, latent_dim, step_size = min(samples, 4e4), 4, 2e-2
    train, _ = paper.load("mnist", quick, data_root, "none", seed)
    x = train[:].flatten(1)
    torch.manual_seed(seed)
    vae = linear_vae(x, latent_dim)
    epochs = max(1, int(samples) // len(x))
    pv.fit(
        vae,
        x,
        epochs=epochs,
        batch_size=paper.BATCH_SIZE,
        objective=TraceMeanField_ELBO(),
        learning_rate=step_size,
        schedule=torch.optim.lr_scheduler.CosineAnnealingLR,
        seed=seed,
    )
    learned, (exact, noise) = decoder_matrix(vae), maximum_likelihood(x, latent_dim)
    found = angles(learned, exact)
    columns = (learned.T @ exact).abs() / learned.norm(dim=0)[:, None] / exact.norm(dim=0)
    scale = vae.decode(torch.zeros(1, latent_dim, dtype=x.dtype)).base_dist.scale.flatten()[0]
    results = {
        **paper.settings(train, epochs * len(x), seed, latent_dim=latent_dim, step_size=step_size),
        "angles_degrees": found.tolist(),
        "column_cosines": columns.diagonal().tolist(),
        "noise_variance": {"learned": scale.item() ** 2, "exact": noise.item()},
    }
    paper.write(out / "pca.json", results)
    print(f"largest angle between the subspaces: {found.max():.2f} degrees")
    print(f"|cosine| of each column and its component: {columns.diagonal().numpy().round(3)}")
    print(f"noise variance: {scale.item() ** 2:.5f}, of maximum likelihood {noise.item():.5f}")

    figure = Figure(figsize=(1.2 * latent_dim, 3), layout="constrained")
    rows = {"PCA": exact, "linear VAE": learned * (learned * exact).sum(0).sign()}
    for row, (name, matrix) in enumerate(rows.items()):
        for column, image in enumerate(matrix.T.reshape(-1, *train.event_shape[1:])):
            place = row * latent_dim + column + 1
            axes = figure.add_subplot(2, latent_dim, place, xticks=[], yticks=[])
            top = exact[:, column].abs().max()
            axes.imshow(image, cmap="RdBu_r", vmin=-top, vmax=top)
            if column == 0:
                axes.set_ylabel(name)
    figure.savefig(out / "pca.png", dpi=150)


if __name__ == "__main__":
    typer.run(main)
