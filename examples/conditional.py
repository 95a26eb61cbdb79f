"""A conditional VAE, p(x|z, y): the class y is given, so z holds the remaining variation.

    python examples/conditional.py            ten epochs of MNIST, a few minutes on two cores
    python examples/conditional.py --quick    one epoch of 4,000 images, a few seconds

In digits.png, each row is one sample of z from the prior, and the columns are the classes. Slant
and stroke are similar along a row while the digit changes: z is the style, y the digit.
(Sohn, Lee & Yan 2015; Kingma et al. 2014, section 4.)
"""

from pathlib import Path
from typing import Annotated

import pyro
import pyro.distributions as dist
import torch
import typer
from rich import print
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus
from typer import Option

import pyro_vae as pv
from pyro_vae import plots


class ConditionalVAE(nn.Module):
    """Model p(z) p(x|z, y) and guide q(z|x, y), in plain Pyro; y is one-hot, `(num_data, 10)`."""

    def __init__(self, latent_dim: int, hidden: int, log_odds: Tensor) -> None:
        super().__init__()
        self.latent_dim, self.x_shape = latent_dim, tuple(log_odds.shape)
        self.decoder = pv.networks.MLP(latent_dim + 10, [hidden], self.x_shape, "tanh", log_odds)
        self.encoder = pv.networks.MLP(log_odds.numel() + 10, [hidden], 2 * latent_dim)

    def likelihood(self, z: Tensor, y: Tensor) -> dist.TorchDistribution:
        """p(x|z, y), for z of shape `(*batch, latent_dim)`."""
        joint = torch.cat([z, y.expand(*z.shape[:-1], 10)], dim=-1)
        return dist.Bernoulli(logits=self.decoder(joint)).to_event(len(self.x_shape))

    def model(self, x: Tensor, y: Tensor) -> None:
        """p(z) p(x|z, y)."""
        pyro.module("conditional_vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", self.likelihood(z, y), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """q(z|x, y)."""
        loc, scale = self.encoder(torch.cat([x.flatten(1), y], dim=-1)).chunk(2, dim=-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, softplus(scale) + 1e-6).to_event(1))


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
    vae = ConditionalVAE(10, hidden, train.log_odds())

    # Further arguments of the programs are passed with the data, one row per datum.
    labels = one_hot(train.labels, 10).float()
    test_labels = one_hot(test.labels, 10).float()
    print(pv.check(vae, (train[:8], labels[:8])))
    fit = pv.fit(vae, (train, labels), epochs=epochs, seed=seed)
    print(f"training ELBO {fit.history[-1]['train_elbo']:.2f} nats per datum")
    scored, _ = test.hold_out(len(test) - num_scored)
    print("log p(x|y) of test data, by importance sampling:")
    print(pv.evaluate(vae, (scored, test_labels[:num_scored]), num_samples=num_samples, seed=seed))

    styles = torch.randn(8, 1, vae.latent_dim)
    with torch.no_grad():
        images = vae.likelihood(styles.expand(8, 10, -1), torch.eye(10)).mean
    out.mkdir(parents=True, exist_ok=True)
    figure = plots.mosaic(images, "p(x|z, y): one z a row, one class y a column")
    figure.savefig(out / "digits.png", dpi=150)
    print(f"Each row of {out / 'digits.png'} is one style z, in all ten classes.")


if __name__ == "__main__":
    typer.run(main)
