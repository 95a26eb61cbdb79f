"""Compare parts and objectives: static binarized MNIST, one network, one budget.

    python benchmarks/parts.py --out runs/parts                the study; hours on two cores
    python benchmarks/parts.py --variants "VampPrior,IWAE-50"  some variants; others are kept
    python benchmarks/parts.py --quick                        a test run on the bundled images
    python benchmarks/parts.py --costs                        cost of every combination; minutes

Every variant differs from the base (standard normal prior, diagonal normal guide, ELBO with one
particle) in one respect. Each run has a folder under `--out`, is resumed after an interruption, and
is not repeated. The table and the picture contain all existing runs, with the paired difference to
the base with the same seed on the same test data. The network is that of pythae's published
reproduction (40 latents, one layer of 400 ReLU units, batches of 100).

`--costs` measures the time of a training step and the peak memory of every prior, guide, likelihood
and objective of `examples/mnist_svi.py` with tanh at its default sizes, each in a separate process.
"""

import functools
import itertools
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from rich.console import Console
from rich.table import Table
from torch.optim.lr_scheduler import OneCycleLR
from typer import Option

import pyro_vae as pv

LATENT_DIM, HIDDEN, BATCH_SIZE, PSEUDO_INPUTS = 40, 400, 100, 500


def diagonal(encoder: Callable[[int], pv.Part]) -> pv.Part:
    """Return the guide of the base."""
    return pv.guides.DiagonalNormal(encoder(2 * LATENT_DIM))


def full(encoder: Callable[[int], pv.Part]) -> pv.Part:
    """Return a guide with a full covariance."""
    return pv.guides.FullNormal(encoder(pv.guides.FullNormal.num_outputs(LATENT_DIM)))


def flow(encoder: Callable[[int], pv.Part]) -> pv.Part:
    """Return an inverse autoregressive flow, conditional on x."""
    return pv.guides.Flow(encoder(3 * LATENT_DIM), LATENT_DIM)


def standard(guide: pv.Part, train: pv.data.Dataset) -> pv.Part:
    """Return the prior of the base."""
    return pv.priors.StandardNormal(LATENT_DIM)


def vamp(guide: pv.Part, train: pv.data.Dataset) -> pv.Part:
    """Return a VampPrior with training images as initial pseudo-inputs."""
    images = train[:PSEUDO_INPUTS]
    return pv.priors.VampPrior(guide, len(images), train.event_shape, pseudo_inputs=images)


def importance_weighted(k: int) -> ELBO:
    """Return the importance-weighted bound of K particles, doubly reparameterized."""
    return pv.objectives.ImportanceWeighted(
        k, doubly_reparameterized=True, vectorize_particles=True, max_plate_nesting=1
    )


VARIANTS: dict[str, tuple[Callable[..., pv.Part], Callable[..., pv.Part], ELBO]] = {
    "base": (standard, diagonal, Trace_ELBO()),
    "mixture prior": (
        lambda guide, train: pv.priors.MixtureOfGaussians(LATENT_DIM, num_components=50),
        diagonal,
        Trace_ELBO(),
    ),
    "VampPrior": (vamp, diagonal, Trace_ELBO()),
    "flow prior": (lambda guide, train: pv.priors.Flow(LATENT_DIM), diagonal, Trace_ELBO()),
    "full guide": (standard, full, Trace_ELBO()),
    "autoregressive guide": (standard, flow, Trace_ELBO()),
    "IWAE-5": (standard, diagonal, importance_weighted(5)),
    "IWAE-50": (standard, diagonal, importance_weighted(50)),
}


def run(
    variant: str, train: pv.data.Dataset, test: torch.Tensor, epochs: int, learning_rate: float,
    num_samples: int, seed: int, out: Path,
) -> None:  # fmt: skip
    """Train and score one variant in its folder, or continue its run."""
    prior, guide, objective = VARIANTS[variant]
    fitted, validation = train.hold_out(len(train) // 12)
    torch.manual_seed(seed)
    decoder = pv.networks.MLP(
        LATENT_DIM, [HIDDEN], train.event_shape, activation="relu", output_bias=train.log_odds()
    )
    encoder = functools.partial(pv.networks.MLP, train.event_shape, [HIDDEN], activation="relu")
    q = guide(encoder)
    vae = pv.VAE(prior(q, fitted), pv.likelihoods.Bernoulli(decoder), q)
    vae.check(fitted[:8])
    fit = pv.fit(
        vae, fitted, validation=validation, epochs=epochs, batch_size=BATCH_SIZE,
        objective=objective, learning_rate=learning_rate, seed=seed, out=out, resume=True,
        schedule=lambda optimizer, steps: OneCycleLR(optimizer, learning_rate, total_steps=steps),
    )  # fmt: skip
    scores = pv.evaluate(vae, test, num_samples=num_samples, seed=seed)
    np.savez(out / "scores.npz", elbo=scores.elbo, log_likelihood=scores.log_likelihood)
    summary = fit.settings | scores.metrics() | {"train_seconds": fit.seconds}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def compare(out: Path, seeds: list[int]) -> Table:
    """Return a table of all runs under `out`, and plot their differences to the base."""
    table = Table("variant", "seed", "ELBO", "log p(x)", "against the base", "minutes")
    bars = []
    for variant in VARIANTS:
        for seed in seeds:
            folder, base = out / f"{variant}-{seed}", out / f"base-{seed}"
            if not all((path / "summary.json").exists() for path in (folder, base)):
                continue
            summary = json.loads((folder / "summary.json").read_text())
            mine, other = (np.load(p / "scores.npz")["log_likelihood"] for p in (folder, base))
            gain, se = (mine - other).mean(), (mine - other).std(ddof=1) / len(mine) ** 0.5
            scores = [
                f"{summary[f'test_{name}']:.2f} ± {summary[f'test_{name}_se']:.2f}"
                for name in ("elbo", "log_likelihood")
            ]
            minutes = f"{summary['train_seconds'] / 60:.0f}"
            table.add_row(variant, str(seed), *scores, f"{gain:+.2f} ± {se:.2f}", minutes)
            table.title = (
                f"{summary['dataset']}, {summary['binarization']}, {summary['epochs']} epochs, "
                f"{len(mine)} test data, K = {summary['num_importance_samples']}, nats per datum"
            )
            bars.append((f"{variant}, seed {seed}", gain, se))
    figure, axes = plt.subplots(figsize=(8, 1 + 0.35 * len(bars)), layout="constrained")
    names, gains, errors = zip(*bars, strict=True)
    axes.barh(names, gains, xerr=2 * np.array(errors), color="C0")
    axes.axvline(0, color="black", lw=0.8)
    axes.invert_yaxis()
    axes.set(xlabel="log p(x) against the base, paired (nats), two standard errors")
    axes.set_title(str(table.title), fontsize=9)
    figure.savefig(out / "parts.png", dpi=110)
    return table


COST_PRIORS: dict[str, Callable[[pv.Part, torch.Tensor], pv.Part]] = {
    "standard-normal": lambda guide, x: pv.priors.StandardNormal(20),
    "mixture": lambda guide, x: pv.priors.MixtureOfGaussians(20, num_components=10),
    "vamp": lambda guide, x: pv.priors.VampPrior(guide, 200, x.shape[1:], pseudo_inputs=x[:200]),
    "flow": lambda guide, x: pv.priors.Flow(20),
}
COST_GUIDES: dict[str, Callable[[Callable[[int], pv.Part]], pv.Part]] = {
    "diagonal-normal": lambda encoder: pv.guides.DiagonalNormal(encoder(40)),
    "full-normal": lambda encoder: pv.guides.FullNormal(
        encoder(pv.guides.FullNormal.num_outputs(20))
    ),
    "flow": lambda encoder: pv.guides.Flow(encoder(60), 20),
}
COST_LIKELIHOODS: dict[str, Callable[[pv.Part], pv.Part]] = {
    "bernoulli": pv.likelihoods.Bernoulli,
    "continuous-bernoulli": pv.likelihoods.ContinuousBernoulli,
    "normal": pv.likelihoods.Normal,
    "discretized-logistic": lambda net: pv.likelihoods.DiscretizedLogistic(net, "learned"),
}
COST_OBJECTIVES: dict[str, Callable[..., ELBO]] = {
    "elbo": Trace_ELBO,
    "analytic-kl": TraceMeanField_ELBO,
    "importance-weighted": pv.objectives.ImportanceWeighted,
    "sticking-the-landing": pv.objectives.StickingTheLanding,
}


def measure(names: tuple[str, str, str, str]) -> tuple[float, float]:
    """Return the seconds of an eager step and the peak memory of the process in GB."""
    prior, guide, likelihood, objective = names
    torch.manual_seed(0)
    levels = 1 if likelihood == "bernoulli" else 255
    x = (torch.rand(256, 1, 28, 28) * levels).round() / levels
    q = COST_GUIDES[guide](functools.partial(pv.networks.MLP, x.shape[1:], [500]))
    p_x = COST_LIKELIHOODS[likelihood](pv.networks.MLP(20, [500], x.shape[1:]))
    vae = pv.VAE(COST_PRIORS[prior](q, x), p_x, q)
    optim = functools.partial(torch.optim.Adam, lr=1e-4, fused=True)
    svi = pv.SVI(
        vae.model, vae.guide, optim, COST_OBJECTIVES[objective](num_particles=1), compile=False
    )
    times = []
    for _ in range(6):
        start = time.perf_counter()
        svi.step(x[:128])
        times.append(time.perf_counter() - start)
    # About one chunk of the default size each.
    pv.evaluate(vae, x[:20], num_samples=64)
    pv.gaps(vae, x[:167], num_steps=1, num_samples=8)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return statistics.median(times[1:]), peak


def costs() -> Table:
    """Return a table with the cost of every combination of the example's choices."""
    table = Table("guide", "prior", "median step, ms", "slowest step, ms", "largest peak, GB")
    rest = [*itertools.product(COST_LIKELIHOODS, COST_OBJECTIVES)]
    context = multiprocessing.get_context("fork")
    for guide, prior in itertools.product(COST_GUIDES, COST_PRIORS):
        with context.Pool(1, maxtasksperchild=1) as pool:
            cells = [(prior, guide, *names) for names in rest]
            seconds, peaks = zip(*pool.imap(measure, cells, chunksize=1), strict=True)
        milliseconds = [1000 * s for s in (statistics.median(seconds), max(seconds))]
        table.add_row(guide, prior, *(f"{ms:.0f}" for ms in milliseconds), f"{max(peaks):.2f}")
    table.title = f"{len(rest)} likelihoods and objectives in each row"
    return table


def main(
    variants: Annotated[str, Option(help="Variants to run, separated by commas")] = ",".join(
        VARIANTS
    ),
    epochs: Annotated[int, Option(help="Passes over the training data for each variant")] = 500,
    learning_rate: Annotated[float, Option(help="Maximum of the one-cycle schedule")] = 2e-3,
    num_samples: Annotated[int, Option(help="K, importance samples for log p(x)")] = 5000,
    num_test: Annotated[int | None, Option(help="Number of test data to score")] = None,
    seeds: Annotated[str, Option(help="Seeds, separated by commas")] = "0",
    quick: Annotated[bool, Option(help="One epoch on the bundled images: a smoke test")] = False,
    measure_costs: Annotated[bool, Option("--costs", help="Measure the example's costs")] = False,
    data_root: Annotated[Path | None, Option(help="Folder, else $PYRO_VAE_DATA")] = None,
    out: Annotated[Path, Option(help="Folder for all runs")] = Path("runs/parts"),
) -> None:
    """Train every missing variant; print the table and draw the picture."""
    if measure_costs:
        Console(width=110).print(costs())
        return
    wanted = dict.fromkeys(["base", *variants.split(",")])  # the others are compared with the base
    if unknown := wanted.keys() - VARIANTS:
        raise typer.BadParameter(
            f"unknown variants {sorted(unknown)}; expected some of {[*VARIANTS]}"
        )
    name = "mnist-5k" if quick else "mnist"
    train, test = pv.data.load(name, binarize="static", root=data_root)
    if quick:
        epochs, num_samples, num_test = 1, 20, 200
    numbers = [int(seed) for seed in seeds.split(",")]
    for seed in numbers:
        for variant in wanted:
            folder = out / f"{variant}-{seed}"
            if not (folder / "summary.json").exists():
                scored = test.spread(num_test or len(test))
                run(variant, train, scored, epochs, learning_rate, num_samples, seed, folder)
    Console(width=110).print(compare(out, numbers))


if __name__ == "__main__":
    typer.run(main)
