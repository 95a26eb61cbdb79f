"""Resampled draws of refined posteriors against the No-U-Turn Sampler, datum by datum.

    python examples/mnist_svi.py --activation tanh --seed 0
    python benchmarks/nuts.py --model runs/mnist_svi/model --out runs/nuts

The posteriors of some test data of a trained VAE are sampled twice: by `pv.refine`, and by Pyro's
NUTS with the decoder fixed. The chains run on all data together, since their log densities add up.
A z-score is the difference of two means (or standard deviations) of a latent over the Monte Carlo
error of both. If both samplers are right, z-scores have a root mean square of one. The errors of
resampled draws are those of the weighted draws that they come from. The error of a standard
deviation of NUTS takes the effective sample size of the squares: successive samples of NUTS are
negatively correlated, and their squares positively.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from arviz_stats.base import array_stats
from pyro.infer import MCMC, NUTS
from typer import Option

import pyro_vae as pv


def by_nuts(vae, x, num_samples, warmup_steps, seed):
    """Return samples of two chains, shape `(chains, samples, data, latents)`, and seconds."""

    def potential(latents):
        z = latents["z"]
        log_prior = vae.model.prior().log_prob(z).sum()
        return -(log_prior + vae.model.likelihood(z).log_prob(x).sum())

    start, chains = time.process_time(), []
    with torch.no_grad():
        first = vae.guide.posterior(x).mean
    for chain in range(2):
        torch.manual_seed(seed + chain)
        kernel = NUTS(potential_fn=potential, max_tree_depth=7)
        sampler = MCMC(
            kernel,
            num_samples=num_samples,
            warmup_steps=warmup_steps,
            initial_params={"z": first},
            disable_progbar=True,
        )
        sampler.run()
        chains.append(sampler.get_samples()["z"])
    return torch.stack(chains).numpy().astype(float), time.process_time() - start


def error_of_sd(samples, ess):
    """Return the standard error of standard deviations over the leading axes, `(data, latents)`.

    `arviz_stats` takes the effective sample size of the samples, not of their squares.
    """
    axes = tuple(range(samples.ndim - 2))
    squares = (samples - samples.mean(axes)) ** 2
    return np.sqrt(squares.var(axes) / ess) / (2 * samples.std(axes))


def compared(nuts, refined, ess):
    """Return z-scores of means and standard deviations, and R-hat, each `(data, latents)`."""
    axes = {"chain_axis": 0, "draw_axis": 1}
    sd = nuts.std((0, 1))
    error_of_mean = array_stats.mcse(nuts, **axes, method="mean")
    error = error_of_sd(nuts, array_stats.ess(nuts, **axes, method="sd"))
    mean = refined.mean(0) - nuts.mean((0, 1))
    spread = refined.std(0) - sd
    return {
        "means": mean / np.hypot(error_of_mean, sd / np.sqrt(ess)[:, None]),
        "standard deviations": spread / np.hypot(error, error_of_sd(refined, ess[:, None])),
        "means, in sd": mean / sd,
        "ratio of sd": refined.std(0) / sd,
        "rhat": array_stats.rhat(nuts, **axes),
    }


def main(
    model: Annotated[Path, Option(help="Folder of the model")] = Path("runs/mnist_svi/model"),
    data: Annotated[str, Option(help=f"One of {', '.join(pv.data.NAMES)}")] = "mnist",
    num_data: Annotated[int, Option(help="Number of test data")] = 50,
    num_samples: Annotated[int, Option(help="Samples of each of two chains")] = 500,
    warmup_steps: Annotated[int, Option(help="Transitions of a chain that adapt NUTS")] = 300,
    seed: Annotated[int, Option(help="Random seed")] = 0,
    out: Annotated[Path, Option(help="Folder of the results")] = Path("runs/nuts"),
) -> None:
    """Compare both samplers; print and write a summary."""
    vae = pv.load(model).requires_grad_(False)
    _, test = pv.data.load(data, binarize="dynamic", seed=seed)
    x = test[:num_data]
    start = time.process_time()
    posterior = pv.refine(vae, x, num_samples=1000, seed=seed)
    candidates = 4000
    refined = posterior.sample(candidates, num_candidates=candidates, seed=seed)["z"].numpy()
    seconds = time.process_time() - start
    nuts, nuts_seconds = by_nuts(vae, x, num_samples, warmup_steps, seed)
    # n samples chosen from n candidates: the errors of weighting and of the choice add up.
    ess = 1 / (1000 / posterior.ess / candidates + 1 / candidates)
    found = compared(nuts, refined.astype(float), ess)
    encoder = vae.guide.posterior(x)
    good = posterior.khat <= 0.7
    result = {"num_data": num_data, "k-hat at most 0.7": int(good.sum())}
    result |= {"seconds refined": seconds, "seconds NUTS": nuts_seconds}
    result["largest R-hat"] = float(found["rhat"].max())
    for name in ("means", "standard deviations"):
        z = found[name][good]
        result[f"{name}: root mean square of z"] = float(np.sqrt((z**2).mean()))
        result[f"{name}: share of |z| < 2"] = float((abs(z) < 2).mean())
        result[f"{name}: largest |z|"] = float(abs(z).max())
    result["means: rms difference in sd"] = float(
        np.sqrt((found["means, in sd"][good] ** 2).mean())
    )
    result["sd: mean ratio"] = float(found["ratio of sd"][good].mean())
    sd = nuts.std((0, 1))
    off = (encoder.mean.numpy() - nuts.mean((0, 1))) / sd
    result["encoder, means: rms difference in sd"] = float(np.sqrt((off[good] ** 2).mean()))
    result["encoder, sd: mean ratio"] = float((encoder.stddev.numpy() / sd)[good].mean())
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{data}-{num_data}-{seed}.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
