"""Appendix F: full variational Bayes, over the decoder's weights too, beside MAP.

    python examples/aevb/appendix_f.py            N = 100, 300, 1000, 10000 of MNIST, 5 seeds
    python examples/aevb/appendix_f.py --quick    some seconds, for a first look

The paper derives it (eqs. 14 to 24, Algorithm 2) and runs no experiment. The weights theta become a
latent outside the plate over data, with prior N(0, I) and q(theta) a diagonal Gaussian:

    L = E[ N/M sum_i log p(x_i|z_i, theta) - KL(q(z_i)||p(z_i)) ] - KL(q(theta)||p(theta))

(eq. 24, both divergences in closed form). Nothing but the model and the guide changes: the same SVI
with TraceMeanField_ELBO trains them, one draw of theta for each minibatch. Scored by log p(x) of
test data: MAP at its theta, full VB as log E_q(theta)[p(x|theta)], by importance sampling. The
paper leaves all settings open: here Adam for both, and q(theta) starts at the network of Appendix C
with a standard deviation of 0.05.
"""

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import paper
import pyro
import pyro.distributions as dist
import torch
import typer
from matplotlib.figure import Figure
from pyro.infer import TraceMeanField_ELBO
from rich import print
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector
from typer import Option

import pyro_vae as pv


class Weights(nn.Module):
    """q(theta) = N(theta; mu, diag sigma^2), theta = mu + sigma * zeta (eq. 21)."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(start.detach().clone())
        self.log_scale = nn.Parameter(torch.full_like(start, math.log(0.05)))

    def forward(self) -> dist.TorchDistribution:
        """Return q(theta), event_shape `(num_weights,)`."""
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class FullVB:
    """Model p(theta) p(z) p(x|z, theta) and guide q(theta) q(z|x), made of a VAE's parts."""

    def __init__(self, vae: pv.VAE) -> None:
        self.prior, self.likelihood = vae.model.prior, vae.model.likelihood
        self.posterior = vae.guide.posterior
        self.weights = Weights(parameters_to_vector(self.likelihood.parameters()))

    def decode(self, z: Tensor, theta: Tensor) -> dist.TorchDistribution:
        """p(x|z, theta), for theta of shape `(num_weights,)`."""
        names, shaped = zip(*self.likelihood.named_parameters(), strict=True)
        parts = theta.split([weight.numel() for weight in shaped])
        weights = [part.view_as(weight) for part, weight in zip(parts, shaped, strict=True)]
        return functional_call(self.likelihood, dict(zip(names, weights, strict=True)), (z,))

    def model(self, x: Tensor) -> None:
        """p(theta) prod_i p(z_i) p(x_i|z_i, theta)."""
        theta = pyro.sample("theta", dist.Normal(torch.zeros_like(self.weights.loc), 1).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z, theta), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(theta) prod_i q(z_i|x_i)."""
        pyro.module("q_theta", self.weights)
        pyro.module("q_z", self.posterior)
        pyro.sample("theta", self.weights())
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))

    def at(self, theta: Tensor) -> pv.VAE:
        """Return the VAE whose decoder has the weights theta."""
        return pv.VAE(self.prior, lambda z: self.decode(z, theta), self.posterior)


def log_likelihood(vaes: list[pv.VAE], test: Tensor, num_samples: int) -> float:
    """Return log of the mean over VAEs of p(x), in nats per datum."""
    scores = [pv.evaluate(vae, test, num_samples=num_samples).log_likelihood for vae in vaes]
    return float(np.mean(np.logaddexp.reduce(scores) - math.log(len(vaes))))


def main(
    samples: paper.Samples = 1e6,
    quick: paper.Quick = False,
    seeds: Annotated[int, Option(help="Repetitions, from --seed on")] = 5,
    draws: Annotated[int, Option(help="Draws of theta that test data are scored by")] = 10,
    latent_dim: Annotated[int, Option(help="N_z")] = 10,
    hidden: Annotated[int, Option(help="Hidden units")] = 100,
    step_size: Annotated[float, Option(help="Of Adam")] = 1e-3,
    init_sd: paper.InitSd = 0.1,
    binarize: paper.Binarize = "dynamic",
    data_root: paper.DataRoot = None,
    seed: paper.Seed = 0,
    out: paper.Out = Path("runs/aevb/appendix_f"),
) -> None:
    """Train MAP and full VB on few and on many data, and compare them on test data."""
    sizes, num_test, num_samples = (100, 300, 1000, 10_000), 1000, 200
    if quick:
        sizes, num_test, num_samples, hidden = (100, 300), 100, 20, 30
        samples, seeds, draws = min(samples, 5e3), 2, 3
    everything, test = paper.load("mnist", quick, data_root, binarize, seed)
    x, loss = test[:num_test], TraceMeanField_ELBO()
    options = {"latent_dim": latent_dim, "hidden": hidden, "init_sd": init_sd}
    results, options = [], options | {"step_size": step_size, "draws": draws, "num_test": num_test}
    for size in sizes:
        train, _ = everything.hold_out(len(everything) - size)
        for run in range(seed, seed + seeds):
            settings = paper.settings(train, samples, run, num_train=size, **options)
            torch.manual_seed(run)
            vae = paper.build(train, latent_dim, hidden, init_sd)
            optim = paper.optimizer("adam", step_size, vae, size)
            list(paper.algorithm_1(vae, train, int(samples), optim, loss, run))
            scores = {"MAP": log_likelihood([vae], x, num_samples)}

            pyro.clear_param_store()  # where the run before left weights of the same names
            torch.manual_seed(run)
            full = FullVB(paper.build(train, latent_dim, hidden, init_sd))
            groups = [{"params": list(q.parameters())} for q in (full.weights, full.posterior)]
            optim = torch.optim.Adam(groups, step_size)
            list(paper.algorithm_1(full, train, int(samples), optim, loss, run))
            drawn = [full.at(full.weights().sample()) for _ in range(draws)]
            scores["full VB"] = log_likelihood(drawn, x, num_samples)
            results.append({**settings, **scores})
            paper.write(out / "appendix_f.json", results)
            print(f"N = {size}, seed {run}:", *(f"{k} {v:.2f}" for k, v in scores.items()))

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="N, training data", ylabel="test log p(x), nats")
    for method in ("MAP", "full VB"):
        values = np.array([[r[method] for r in results if r["num_train"] == n] for n in sizes])
        errors = values.std(axis=1, ddof=1) / math.sqrt(seeds) if seeds > 1 else None
        axes.errorbar(sizes, values.mean(axis=1), errors, marker="o", capsize=3, label=method)
    axes.legend(title=f"{everything.name}, {seeds} seeds")
    figure.savefig(out / "appendix_f.png", dpi=150)


if __name__ == "__main__":
    typer.run(main)
