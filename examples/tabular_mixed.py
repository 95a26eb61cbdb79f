"""A table of mixed columns: a likelihood for each column type, against normal ones for all.

    python examples/tabular_mixed.py

The rows are people, simulated from two latents: age (a real number, standardized), income
(positive, in ten thousands), home ownership (yes or no), education (four categories) and children
(a count). Two VAEs differ only in the likelihood: `Columns` of five types, or a `Normal` for every
column. Their log densities are not comparable: the first is in part a probability mass function.

In runs/tabular_mixed/rows.png, rows sampled with `Columns` resemble the test data and have the same
dependences: income rises with education, the number of children with age. The normal VAE samples
impossible people, with fractional children and negative incomes. It also loses the dependence of
children on age: the density of a binary column is unbounded, so the latents are used to reproduce
that column ever more exactly.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import pyro_vae as pv
from pyro_vae import likelihoods, networks

COLUMNS = ("age", "income", "home", "education", "children")
NUM_LEVELS, LATENT_DIM, HIDDEN = 4, 2, 32


def simulate(num_data: int, seed: int) -> torch.Tensor:
    """Return people, shape `(num_data, 5)`, with columns in the order of `COLUMNS`."""
    rng = np.random.default_rng(seed)
    means, stage = rng.normal(size=(2, num_data))
    level = np.arange(NUM_LEVELS) - 1.5
    utility = 1.5 * means[:, None] * level - 0.3 * level**2
    people = [
        0.9 * stage + 0.4 * rng.normal(size=num_data),
        np.exp(1 + 0.5 * means + 0.2 * stage + 0.2 * rng.normal(size=num_data)),
        rng.random(num_data) < 1 / (1 + np.exp(-2 * stage - means)),
        (utility + rng.gumbel(size=utility.shape)).argmax(axis=1),
        rng.poisson(np.exp(0.2 + 0.6 * stage - 0.3 * means)),
    ]
    return torch.from_numpy(np.stack(people, axis=1)).float()


def columns() -> pv.Part:
    """Return a likelihood of five types with a shared hidden layer."""
    return likelihoods.Columns(
        [
            likelihoods.Normal(networks.MLP(HIDDEN, [], 1)),
            likelihoods.LogNormal(networks.MLP(HIDDEN, [], 1)),
            likelihoods.Bernoulli(networks.MLP(HIDDEN, [], 1)),
            likelihoods.Categorical(networks.MLP(HIDDEN, [], NUM_LEVELS), NUM_LEVELS, spacing=1),
            likelihoods.Poisson(networks.MLP(HIDDEN, [], 1)),
        ],
        trunk=networks.MLP(LATENT_DIM, [HIDDEN], HIDDEN),
    )


def normal() -> pv.Part:
    """Return a normal likelihood for all columns."""
    return likelihoods.Normal(
        networks.MLP(LATENT_DIM, [HIDDEN, HIDDEN], len(COLUMNS)), scale="entrywise"
    )


def picture(tables: dict[str, np.ndarray], path: Path) -> None:
    """Plot income against education, and children against age, for each table."""
    figure, axes = plt.subplots(
        2, len(tables), figsize=(11, 6), sharex="row", sharey="row", layout="constrained"
    )
    for (name, people), (top, bottom) in zip(tables.items(), axes.T, strict=True):
        age, income, home, education, children = people[:400].T
        top.scatter(education, income, s=6, alpha=0.4)
        top.set(title=name, xlabel="education", ylabel="income", ylim=(-4, 16))
        points = bottom.scatter(age, children, c=home, s=6, alpha=0.6, cmap="coolwarm")
        bottom.set(xlabel="age", ylabel="children", ylim=(-3, 10))
    figure.colorbar(points, ax=axes[1], label="home")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Train both VAEs, compare their samples with the test data, and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few data and epochs: a smoke test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/tabular_mixed"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    num_data, epochs = (1000, 3) if arguments.quick else (6000, 60)

    data = simulate(num_data, arguments.seed)
    train, test = data[: -num_data // 3], data[-num_data // 3 :]
    possible = columns()(torch.zeros(1, LATENT_DIM)).support
    dependence = np.corrcoef(test.numpy().T)
    tables = {"test data": test.numpy()}
    for likelihood in (columns, normal):
        torch.manual_seed(arguments.seed)
        encoder = networks.MLP(len(COLUMNS), [64], 2 * LATENT_DIM)
        prior, guide = pv.priors.StandardNormal(LATENT_DIM), pv.guides.DiagonalNormal(encoder)
        vae = pv.VAE(prior, likelihood(), guide)
        vae.check(train[:8])
        pv.fit(vae, train, epochs=epochs, learning_rate=5e-3, seed=arguments.seed)
        drawn = vae.sample(len(test))
        tables[likelihood.__name__] = drawn.numpy()
        error = np.abs(np.corrcoef(drawn.numpy().T) - dependence).max()
        impossible = 1 - possible.check(drawn).float().mean().item()
        print(f"{likelihood.__name__}: {impossible:.1%} of its people are impossible")
        print(f"    its correlations are off by at most {error:.2f}")
    picture(tables, arguments.out / "rows.png")
    print(f"picture: {arguments.out / 'rows.png'}")


if __name__ == "__main__":
    main()
