"""Over-dispersed counts: a Poisson likelihood against a negative binomial one.

    python examples/count_data.py

The counts come from a model with two latents and negative binomial noise, of variance
m + m^2 / r with r = 3. Two VAEs differ in one line, the likelihood. They score the same test data,
so their difference is paired. The picture, runs/count_data/counts.png, compares the predictions of
each VAE with the test data.

Result: the Poisson VAE has the right means, but predicts too little variance and too few small
counts. The predictions of the negative binomial VAE match the test data, it wins by many standard
errors, and its learned r is within 10% of the true value.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import pyro_vae as pv

LATENT_DIM, NUM_COUNTS, TRUE_R = 2, 30, 3.0


def simulate(num_data: int, seed: int) -> torch.Tensor:
    """Return counts of shape `(num_data, NUM_COUNTS)`, rates between about 1 and 50."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(0, 0.5, (LATENT_DIM, NUM_COUNTS))
    log_mean = rng.uniform(0.5, 3, NUM_COUNTS) + rng.normal(size=(num_data, LATENT_DIM)) @ loadings
    mean = np.exp(log_mean)
    return torch.from_numpy(rng.negative_binomial(TRUE_R, TRUE_R / (TRUE_R + mean))).float()


class LogCounts(pv.Part):
    """First layer of an encoder: log(1 + x), so that large counts do not dominate small ones."""

    def __init__(self, network: pv.Part) -> None:
        super().__init__()
        self.network = network
        self.out_shape = network.out_shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map counts `(*batch, NUM_COUNTS)` to the network's outputs."""
        return self.network(x.log1p())


def build(likelihood: type[pv.Part], train: torch.Tensor) -> pv.VAE:
    """Return a VAE with the given likelihood class; the other parts are the same."""
    # Log means are linear in z, as in the simulation, and start at the log means of the data.
    decoder = pv.networks.MLP(LATENT_DIM, [], NUM_COUNTS, output_bias=train.mean(dim=0).log())
    return pv.VAE(
        prior=pv.priors.StandardNormal(LATENT_DIM),
        likelihood=likelihood(decoder),
        guide=pv.guides.DiagonalNormal(
            LogCounts(pv.networks.MLP(NUM_COUNTS, [64], 2 * LATENT_DIM))
        ),
    )


def picture(test: np.ndarray, predicted: dict[str, np.ndarray], path: Path) -> None:
    """Draw variance against mean for every column of counts, and the counts of one column."""
    figure, (moments, histogram) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    column = int(np.argsort(test.mean(axis=0))[NUM_COUNTS // 2])
    edges = np.arange(int(np.quantile(test[:, column], 0.99)) + 2) - 0.5
    for (name, counts), marker in zip({"test data": test, **predicted}.items(), "o+x", strict=True):
        moments.loglog(counts.mean(axis=0), counts.var(axis=0), marker, label=name)
        share = np.histogram(counts[:, column], edges)[0] / len(counts)
        histogram.plot(edges[:-1] + 0.5, share, marker=marker, lw=1, label=name)
    moments.set(xlabel="mean", ylabel="variance", title="each column of counts")
    histogram.set(xlabel="count", ylabel="share of the data", title=f"column {column}")
    moments.legend()
    histogram.legend()
    figure.suptitle(f"New data drawn from each VAE, beside the test data (true r = {TRUE_R:g})")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Train both VAEs, print their scores and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few data and epochs: a smoke test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/count_data"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    num_data, epochs, num_samples = (600, 3, 20) if arguments.quick else (4000, 60, 500)

    data = simulate(num_data, arguments.seed)
    train, test = data[: -num_data // 4], data[-num_data // 4 :]
    scores, predicted = {}, {}
    for likelihood in (pv.likelihoods.Poisson, pv.likelihoods.NegativeBinomial):
        name = likelihood.__name__
        torch.manual_seed(arguments.seed)
        vae = build(likelihood, train)
        vae.check(train[:8])
        pv.fit(vae, train, epochs=epochs, learning_rate=1e-2, seed=arguments.seed)
        result = pv.evaluate(vae, test, num_samples=num_samples, seed=arguments.seed)
        scores[name] = result.log_likelihood
        predicted[name] = vae.sample(len(test)).numpy()
        mean, se = result.mean("log_likelihood"), result.se("log_likelihood")
        print(f"{name}: test log p(x) = {mean:.2f} ± {se:.2f} nats per datum")
    difference = scores["NegativeBinomial"] - scores["Poisson"]
    se = difference.std(ddof=1) / len(difference) ** 0.5
    print(f"NegativeBinomial - Poisson: {difference.mean():.2f} ± {se:.2f}, paired")
    r = vae.model.likelihood.inverse_dispersion(torch.empty(1)).item()
    print(f"learned r = {r:.2f}, true r = {TRUE_R:g}")
    picture(test.numpy(), predicted, arguments.out / "counts.png")
    print(f"picture: {arguments.out / 'counts.png'}")


if __name__ == "__main__":
    main()
