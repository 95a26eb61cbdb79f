"""Compare parts and objectives: static binarized MNIST, one network, one budget.

    python benchmarks/parts.py --out runs/parts                the study; hours on two cores
    python benchmarks/parts.py --variants "VampPrior,IWAE-50"  some variants; others are kept
    python benchmarks/parts.py --quick                        a test run on the bundled images

Every variant differs from the base (standard normal prior, diagonal normal guide, ELBO with one
particle) in one respect. Each run has a folder under `--out`, is resumed after an interruption, and
is not repeated. The table and the picture contain all existing runs, with the paired difference to
the base with the same seed on the same test data. The network is that of pythae's published
reproduction (40 latents, one layer of 400 ReLU units, batches of 100).
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from pyro.infer import ELBO, Trace_ELBO
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
    data_root: Annotated[Path | None, Option(help="Folder, else $PYRO_VAE_DATA")] = None,
    out: Annotated[Path, Option(help="Folder for all runs")] = Path("runs/parts"),
) -> None:
    """Train every missing variant; print the table and draw the picture."""
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
