"""A conditional VAE, p(x|z, y): the class y is given, so z holds the remaining variation.

    python examples/conditional.py            ten epochs of MNIST, a few minutes on two cores
    python examples/conditional.py --quick    one epoch of 4,000 images, a few seconds

In digits.png, each row is one sample of z from the prior, and the columns are the classes. Slant
and stroke are similar along a row while the digit changes: z is the style, y the digit.
(Sohn, Lee & Yan 2015; Kingma et al. 2014, section 4.)
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import print
from torch import Tensor
from torch.nn.functional import one_hot
from typer import Option

import pyro_vae as pv
from pyro_vae import plots
from pyro_vae.networks import MLP, WithContext


def build(latent_dim: int, hidden: int, log_odds: Tensor) -> pv.ConditionalVAE:
    """Return p(z) p(x|z, y) and q(z|x, y); y is one-hot, `(num_data, 10)`."""
    shape = tuple(log_odds.shape)
    decoder = MLP(latent_dim + 10, [hidden], shape, output_bias=log_odds)
    encoder = MLP(log_odds.numel() + 10, [hidden], 2 * latent_dim)
    return pv.ConditionalVAE(
        prior=pv.priors.StandardNormal(latent_dim),
        likelihood=pv.likelihoods.Bernoulli(WithContext(decoder, in_shape=latent_dim)),
        guide=pv.guides.DiagonalNormal(WithContext(encoder, in_shape=shape)),
    )


def main(
    quick: Annotated[bool, Option("--quick", help="A few seconds, for a first look")] = False,
    data_root: Annotated[Path | None, Option(help="Folder with the data")] = None,
    epochs: Annotated[int, Option(help="Passes over the training data")] = 10,
    seed: Annotated[int, Option(help="Random seed of the run")] = 0,
    out: Annotated[Path, Option(help="Folder for the picture")] = Path("runs/conditional"),
) -> None:
    """Train p(x|z, y) on MNIST and its labels, score it, and draw each style in each class."""
    train, test = pv.data.load("mnist-5k" if quick else "mnist", root=data_root, seed=seed)
    epochs, hidden = (1, 100) if quick else (epochs, 500)
    num_scored, num_samples = (100, 50) if quick else (1000, 500)
    torch.manual_seed(seed)
    vae = build(10, hidden, train.log_odds())

    # The context of x is passed with the data, one row per datum.
    labels = one_hot(train.labels, 10).float()
    test_labels = one_hot(test.labels, 10).float()
    print(vae.check(train[:8], labels[:8]))
    fit = pv.fit(vae, (train, labels), epochs=epochs, seed=seed)
    print(f"training ELBO {fit.history[-1]['train_elbo']:.2f} nats per datum")
    scored, _ = test.hold_out(len(test) - num_scored)
    print("log p(x|y) of test data, by importance sampling:")
    print(pv.evaluate(vae, (scored, test_labels[:num_scored]), num_samples=num_samples, seed=seed))

    styles, classes = torch.randn(8, 1, 10).expand(8, 10, -1), torch.eye(10).expand(8, 10, -1)
    with torch.no_grad():
        images = vae.decode(styles, classes).mean
    out.mkdir(parents=True, exist_ok=True)
    figure = plots.mosaic(images, "p(x|z, y): one z a row, one class y a column")
    figure.savefig(out / "digits.png", dpi=150)
    print(f"Each row of {out / 'digits.png'} is one style z, in all ten classes.")


if __name__ == "__main__":
    typer.run(main)
