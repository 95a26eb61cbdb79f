"""Your own model and guide: a hierarchical VAE with two stochastic layers, in plain Pyro.

    python examples/your_own_model.py            ten epochs of MNIST, a few minutes on two cores
    python examples/your_own_model.py --quick    one epoch of 4,000 images, a few seconds

    model:  z2 ~ N(0, I),  z1 ~ p(z1|z2),  x ~ p(x|z1)
    guide:  z1 ~ q(z1|x),  z2 ~ q(z2|z1)

The model and guide are two functions with any site names and `pyro.module` for the parameters.
`pv.Pair` combines them, and `check`, `fit`, `SVI`, `evaluate` and every objective accept the pair
as they accept a `VAE`. (Burda et al. 2015, section 5, train two such layers.) In layers.png, each
row is one sample of z2, with ten samples of z1. A row has one shape, or a few, that vary in detail:
the more similar its images, the more the upper layer determines.
"""

from pathlib import Path
from typing import Annotated

import pyro
import pyro.distributions as dist
import torch
import typer
from rich import print
from torch import Tensor, nn
from torch.nn.functional import softplus
from typer import Option

import pyro_vae as pv
from pyro_vae import plots


def normal(parameters: Tensor) -> dist.TorchDistribution:
    """N(loc, diag scale^2), for a network's output `(*batch, 2 * dim)`."""
    loc, scale = parameters.chunk(2, dim=-1)
    return dist.Normal(loc, softplus(scale) + 1e-6).to_event(1)


def main(
    quick: Annotated[bool, Option("--quick", help="A few seconds, for a first look")] = False,
    data_root: Annotated[Path | None, Option(help="Folder with the data")] = None,
    epochs: Annotated[int, Option(help="Passes over the training data")] = 10,
    particles: Annotated[int, Option(help="K of the importance-weighted bound; 1: ELBO")] = 5,
    seed: Annotated[int, Option(help="Random seed of the run")] = 0,
    out: Annotated[Path, Option(help="Folder for the picture")] = Path("runs/your_own_model"),
) -> None:
    """Train your own pair on MNIST, score it, and plot samples of each layer."""
    train, test = pv.data.load("mnist-5k" if quick else "mnist", root=data_root, seed=seed)
    train, validation = train.hold_out(len(train) // 12)
    epochs, hidden = (1, 50) if quick else (epochs, 200)
    num_scored, num_samples = (100, 50) if quick else (1000, 500)
    x_shape, upper, lower = train.event_shape, 10, 50
    torch.manual_seed(seed)
    networks = nn.ModuleDict(
        {
            "z2 to z1": pv.networks.MLP(upper, [hidden], 2 * lower),
            "z1 to x": pv.networks.MLP(lower, [hidden], x_shape, "tanh", train.log_odds()),
            "x to z1": pv.networks.MLP(x_shape, [hidden], 2 * lower),
            "z1 to z2": pv.networks.MLP(lower, [hidden], 2 * upper),
        }
    )

    def model(x: Tensor) -> None:
        pyro.module("networks", networks)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(upper), 1.0).to_event(1))
            z1 = pyro.sample("z1", normal(networks["z2 to z1"](z2)))
            p_x = dist.Bernoulli(logits=networks["z1 to x"](z1)).to_event(len(x_shape))
            pyro.sample("x", p_x, obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", normal(networks["x to z1"](x)))
            pyro.sample("z2", normal(networks["z1 to z2"](z1)))

    pair = pv.Pair(model, guide)
    objective = pv.objectives.ImportanceWeighted(particles, doubly_reparameterized=True)
    print(pv.check(pair, train[:8], objective=objective))
    fit = pv.fit(pair, train, validation=validation, epochs=epochs, objective=objective, seed=seed)
    print(f"validation ELBO {fit.best['validation_elbo']:.2f} nats per datum")
    scored, _ = test.hold_out(len(test) - num_scored)
    print(pv.evaluate(pair, scored, num_samples=num_samples, seed=seed))

    with torch.no_grad():
        z2 = torch.randn(8, 1, upper)
        z1 = normal(networks["z2 to z1"](z2).expand(8, 10, -1)).sample()
        images = networks["z1 to x"](z1).sigmoid()
    out.mkdir(parents=True, exist_ok=True)
    figure = plots.mosaic(images, "one z2 a row, z1 drawn anew along it")
    figure.savefig(out / "layers.png", dpi=150)
    print(f"Each row of {out / 'layers.png'} is one draw of z2, with ten draws of z1.")


if __name__ == "__main__":
    typer.run(main)
