"""Appendix F: full variational Bayes over the decoder's weights, compared with MAP.

    python examples/aevb/appendix_f.py            N = 100, 300, 1000, 10,000 of MNIST, 5 seeds
    python examples/aevb/appendix_f.py --quick    a test run of a few seconds

The paper derives it (eqs. 14 to 24, Algorithm 2) but has no experiment. With M of N data,

    L = E[ N/M sum_i log p(x_i|z_i, theta) - KL(q(z_i)||p(z_i)) ] - KL(q(theta)||p(theta))

(eq. 24; full_vb.py has the model and guide), with one sample of theta per minibatch. The score is
log p(x), at theta for MAP and log E_q(theta)[p(x|theta)] for full VB, by importance sampling on

    test     held-out data
    own      samples from the trained model. A calibrated model gives them the same score as test
             data; own - test is its overconfidence

The paper leaves all settings open. Here, Adam trains both. The standard deviations of q(theta)
start far from those of the prior, to which most weights converge. Their step size is therefore ten
times as large; tune `--weight-step-size` if a run is short.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import paper
import pyro
import torch
import typer
from full_vb import FullVB
from matplotlib.figure import Figure
from pyro.infer import TraceMeanField_ELBO
from rich import print
from rich.table import Table
from torch import Tensor
from typer import Option

import pyro_vae as pv

METHODS = ("MAP", "full VB")


def log_likelihood(vaes: list[pv.VAE], x: Tensor, num_samples: int) -> float:
    """Return log of the mean over VAEs of p(x), in nats per datum."""
    scores = [pv.evaluate(vae, x, num_samples=num_samples).log_likelihood for vae in vaes]
    return float(np.mean(np.logaddexp.reduce(scores) - math.log(len(vaes))))


def trained(train: pv.data.Dataset, settings: dict[str, Any]) -> list[pv.VAE]:
    """Train by the method of `settings`; return the VAEs of the predictive mixture."""
    torch.manual_seed(settings["seed"])
    vae = paper.build(train, settings["latent_dim"], settings["hidden"], settings["init_sd"])
    samples, step_size, seed = settings["samples"], settings["step_size"], settings["seed"]
    if settings["method"] == "MAP":
        optim = paper.optimizer("adam", step_size, vae, len(train))
        list(paper.algorithm_1(vae, train, samples, optim, TraceMeanField_ELBO(), seed))
        return [vae]
    full = FullVB(vae, settings["weight_sd"])
    groups = [
        {"params": list(full.weights.parameters()), "lr": settings["weight_step_size"]},
        {"params": list(full.posterior.parameters())},
    ]
    with pyro.get_param_store().scope():  # an earlier run left weights with the same names
        optim = torch.optim.Adam(groups, step_size)
        list(paper.algorithm_1(full, train, samples, optim, TraceMeanField_ELBO(), seed))
    return [full.at(full.weights().sample()) for _ in range(settings["draws"])]


def main(
    samples: paper.Samples = 1e6,
    quick: paper.Quick = False,
    data: Annotated[
        Literal["mnist", "mnist-5k"], Option(help="mnist-5k needs no download")
    ] = "mnist",
    num_train: Annotated[list[int] | None, Option(min=1, max=59_999, help="N")] = None,
    seeds: Annotated[int, Option(min=2, help="Number of seeds, from --seed on")] = 5,
    draws: Annotated[int, Option(min=1, help="Samples of theta for each score")] = 10,
    num_scored: Annotated[int, Option(min=10, help="Test data, and samples from the model")] = 1000,
    num_samples: Annotated[int, Option(min=1, help="Importance samples")] = 200,
    latent_dim: Annotated[int, Option(min=1, help="N_z")] = 10,
    hidden: Annotated[int, Option(min=1, help="Hidden units")] = 100,
    step_size: Annotated[float, Option(help="Step size of Adam")] = 1e-3,
    weight_step_size: Annotated[float, Option(help="Step size of Adam for q(theta)")] = 1e-2,
    weight_sd: Annotated[float, Option(help="Initial standard deviation of q(theta)")] = 0.05,
    init_sd: paper.InitSd = 0.1,
    binarize: paper.Binarize = "dynamic",
    data_root: paper.DataRoot = None,
    seed: paper.Seed = 0,
    out: paper.Out = Path("runs/aevb/appendix_f"),
) -> None:
    """Train MAP and full VB on few and on more data, skipping saved results; compare them."""
    path = out / "appendix_f.json"
    results = json.loads(path.read_text()) if path.is_file() else []
    if quick:
        num_train, num_scored, num_samples, hidden = num_train or [100, 300], 100, 20, 30
        samples, seeds, draws = min(samples, 3e3), 2, 2
    everything, test = paper.load(data, quick, data_root, binarize, seed)
    options = {"latent_dim": latent_dim, "hidden": hidden, "init_sd": init_sd, "draws": draws}
    options |= {"step_size": step_size, "num_scored": num_scored, "num_samples": num_samples}
    options |= {"weight_step_size": weight_step_size, "weight_sd": weight_sd}
    scores = {}
    for size in num_train or [n for n in (100, 300, 1000, 10_000) if n < len(everything)]:
        train, _ = everything.hold_out(len(everything) - size)
        for method in METHODS:
            for run in range(seed, seed + seeds):
                settings = paper.settings(
                    train, samples, run, num_train=size, method=method, **options
                )
                found = next((r for r in results if settings.items() <= r.items()), None)
                if found is None:
                    vaes = trained(train, settings)
                    own = torch.cat([vae.sample(num_scored // len(vaes)) for vae in vaes])
                    scored = {"test": test[:num_scored], "own": own}
                    found = settings | {
                        k: log_likelihood(vaes, x, num_samples) for k, x in scored.items()
                    }
                    results.append(found)
                    paper.write(path, results)
                scores[size, method, run] = found["test"], found["own"]
                print(f"N = {size}, {method}, seed {run}: {found['test']:.2f} test")
    report(scores, everything.name).savefig(out / "appendix_f.png", dpi=150)


def report(scores: dict[tuple[int, str, int], tuple[float, float]], title: str) -> Figure:
    """Print means and standard errors over seeds, and plot the scores of test data."""
    table = Table("N", "method", "test log p(x)", "own", "own - test")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="N, training data", ylabel="test log p(x), nats")
    sizes = sorted({size for size, _, _ in scores})
    for method in METHODS:
        points = []
        for size in sizes:
            found = np.array([s for (n, m, _), s in scores.items() if (n, m) == (size, method)])
            columns = np.column_stack([found, found[:, 1] - found[:, 0]])
            mean, error = columns.mean(0), columns.std(0, ddof=1) / math.sqrt(len(columns))
            cells = [f"{m:.2f} ± {e:.2f}" for m, e in zip(mean, error, strict=True)]
            table.add_row(str(size), method, *cells)
            points.append((mean[0], error[0]))
        axes.errorbar(sizes, *np.transpose(points), marker="o", capsize=3, label=method)
    print(table)
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    axes.legend(title=title)
    return figure


if __name__ == "__main__":
    typer.run(main)
