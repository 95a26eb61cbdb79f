"""The variance of four gradient estimators of the bound, on one batch, before and after training.

    python examples/aevb/estimators.py            MNIST
    python examples/aevb/estimators.py --quick    a test run of a few seconds

All four are unbiased; they differ in the variance of one sample:

    score function        f(z) d log q(z|x)/d phi, the "usual" estimator of section 2.2, with very
                          high variance; in Pyro, Trace_ELBO with samples that are not
                          reparameterized
    A                     eq. 6, z = g(e, x) reparameterized: Trace_ELBO
    B                     eq. 7 and eq. 10, the KL divergence in closed form: TraceMeanField_ELBO
    sticking the landing  A without the score function (Roeder et al. 2017)

The variance is the trace of the covariance matrix of one sample (L = 1, M = 100) over the
parameters of the guide (phi) and of the model (theta), in squared nats per datum. Result: for the
guide, the score function is orders of magnitude above the others.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import paper
import pyro
import torch
import typer
from matplotlib.figure import Figure
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from rich import print
from rich.table import Table
from torch import Tensor
from typer import Option

import pyro_vae as pv


def detached(posterior: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Return the guide part without reparameterization, so Pyro uses the score function."""

    def guide(x: Tensor) -> Any:
        q = posterior(x)
        return NonreparameterizedNormal(q.mean, q.stddev).to_event(1)

    return guide


ESTIMATORS: dict[str, tuple[Callable[[], ELBO], Callable[..., Any] | None]] = {
    "score function": (Trace_ELBO, detached),
    "A (eq. 6)": (Trace_ELBO, None),
    "B (eq. 7)": (TraceMeanField_ELBO, None),
    "sticking the landing": (pv.objectives.StickingTheLanding, None),
}


def gradient_moments(vae: pv.VAE, x: Tensor, name: str, draws: int) -> tuple[Tensor, Tensor, int]:
    """Estimate the gradient of the bound per datum of x, `draws` times over.

    Returns:
        Mean and variance of one sample for every parameter, each `(num_parameters,)` in float64,
        and the number of the guide's parameters, which come first.
    """
    objective, change = ESTIMATORS[name]
    pair = vae if change is None else vae.replace(guide=change(vae.guide.posterior))
    model, guide = (pv.objectives.per_datum(p, len(x)) for p in (pair.model, pair.guide))
    phi, theta = list(vae.guide.parameters()), list(vae.model.parameters())
    total, squares = torch.zeros(2, sum(p.numel() for p in [*phi, *theta]), dtype=torch.float64)
    with pyro.validation_enabled(False):
        for _ in range(draws):
            elbo = -objective().differentiable_loss(model, guide, x)
            parts = torch.autograd.grad(elbo, [*phi, *theta])
            gradient = torch.cat([part.flatten() for part in parts]).double()
            total += gradient
            squares += gradient.square()
    mean = total / draws
    variance = (squares / draws - mean.square()).clamp(min=0) * draws / (draws - 1)
    return mean, variance, sum(parameter.numel() for parameter in phi)


def main(
    samples: paper.Samples = 1e6,
    quick: paper.Quick = False,
    draws: Annotated[int, Option(min=2, help="Gradients for each estimator")] = 500,
    latent_dim: Annotated[int, Option(min=1, help="N_z")] = 20,
    hidden: Annotated[int, Option(min=1, help="Hidden units")] = 500,
    init_sd: paper.InitSd = 0.1,
    step_size: Annotated[float, Option(help="Step size of Adagrad")] = 0.02,
    binarize: paper.Binarize = "dynamic",
    data_root: paper.DataRoot = None,
    seed: paper.Seed = 0,
    out: paper.Out = Path("runs/aevb/estimators"),
) -> None:
    """Measure the variance of each estimator before and after training."""
    if quick:
        samples, draws, hidden, latent_dim = min(samples, 3e3), 30, 50, 5
    train, _ = paper.load("mnist", quick, data_root, binarize, seed)
    torch.manual_seed(seed)
    vae = paper.build(train, latent_dim, hidden, init_sd)
    x = train[: paper.BATCH_SIZE]
    rows = []

    def measure(seen: int) -> None:
        for name in ESTIMATORS:
            _, variance, cut = gradient_moments(vae, x, name, draws)
            guide, model = variance[:cut].sum().item(), variance[cut:].sum().item()
            rows.append({"seen": seen, "estimator": name, "guide": guide, "model": model})

    measure(0)
    optim = paper.optimizer("adagrad", step_size, vae, len(train))
    for seen in paper.algorithm_1(vae, train, int(samples), optim, TraceMeanField_ELBO(), seed):
        measure(seen)

    options = {"draws": draws, "latent_dim": latent_dim, "hidden": hidden}
    options |= {"init_sd": init_sd, "step_size": step_size}
    settings = paper.settings(train, samples, seed, **options)
    paper.write(out / "estimators.json", {"settings": settings, "variances": rows})
    caption = json.dumps(settings).strip("{}").replace('"', "")
    table = Table(
        "samples seen", "estimator", "variance, guide", "variance, model", caption=caption
    )
    for row in rows:
        table.add_row(
            f"{row['seen']:,}", row["estimator"], f"{row['guide']:.3g}", f"{row['model']:.3g}"
        )
    print(table)

    figure = Figure(figsize=(9, 4), layout="constrained")
    for place, (part, scale) in enumerate((("guide", "log"), ("model", "linear")), start=1):
        axes = figure.add_subplot(1, 2, place, title=f"gradient of the {part}", yscale=scale)
        for shift, seen in ((-0.2, rows[0]["seen"]), (0.2, rows[-1]["seen"])):
            heights = [row[part] for row in rows if row["seen"] == seen]
            bars = [i + shift for i in range(len(heights))]
            axes.bar(bars, heights, width=0.4, label=f"after {seen:,} samples")
        axes.set_xticks(range(len(ESTIMATORS)), list(ESTIMATORS), rotation=15, fontsize=8)
        axes.set_ylabel("variance of one draw (nats², summed)")
        if part == "guide":
            axes.legend(loc="upper right")
    figure.savefig(out / "estimators.png", dpi=150)


if __name__ == "__main__":
    typer.run(main)
