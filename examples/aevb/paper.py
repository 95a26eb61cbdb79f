"""Shared code of the scripts in this folder: Algorithm 1 and the networks of Appendix C.

The paper is Kingma & Welling (2013), "Auto-Encoding Variational Bayes". It leaves some settings
open. The choices here are options of the scripts if they matter:

- Binarization of MNIST: dynamic, a new sample of Bernoulli(pixel/255) for every use of an image.
- Parameters start from N(0, 0.01): 0.01 is read as the variance, because eq. 9 writes
  N(mu, sigma^2). The standard deviation is 0.1 (`--init-sd 0.01` is the other reading).
- The prior p(theta) = N(0, I) applies to the decoder's parameters only, the model's theta.
- Scales are softplus(output), not exp(output / 2), which overflows at large steps.
- Frey Face: 200 random frames of the 1,965 are the test data.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from rich.console import Console
from rich.progress import track
from torch import Tensor
from typer import Option

import pyro_vae as pv

Samples = Annotated[float, Option(min=1, help="Training samples seen, as in the paper: 1e6, ...")]
Quick = Annotated[bool, Option("--quick", help="A test run of seconds on mnist-5k")]
DataRoot = Annotated[Path | None, Option(help="Folder with the data [default: $PYRO_VAE_DATA]")]
Binarize = Annotated[Literal["dynamic", "static", "threshold"], Option(help="For MNIST")]
InitSd = Annotated[float, Option(help="Standard deviation of the parameters at the start")]
Seed = Annotated[int, Option(help="Random seed of the run")]
OptimizerName = Annotated[Literal["adagrad", "adam"], Option(help="The paper uses adagrad")]
Out = Annotated[Path, Option(help="Folder for the picture and the JSON")]

Step = Callable[[Tensor, torch.Generator], None]  # minibatch indices, binarization generator
# Adagrad's steps are those of section 5; Adam's are three around its usual step.
STEP_SIZES = {"adagrad": (0.01, 0.02, 0.1), "adam": (3e-4, 1e-3, 3e-3)}
BATCH_SIZE = 100  # M
HIDDEN = {"mnist": 500, "frey": 200}


def load(name: str, quick: bool, root: Path | None, binarize: str, seed: int) -> pv.data.Split:
    """Return training and test data; `quick` uses the bundled images for MNIST."""
    if name == "frey":
        return pv.data.load("frey", root=root, seed=seed)
    return pv.data.load("mnist-5k" if quick else name, binarize=binarize, root=root, seed=seed)


def build(data: pv.data.Dataset, latent_dim: int, hidden: int, init_sd: float) -> pv.VAE:
    """Return the model and the recognition model of Appendix C, one tanh layer in each.

    Binarized images have a Bernoulli decoder (C.1), grey ones a Gaussian decoder that computes
    means, with a sigmoid, and scales (C.2, eq. 12).
    """
    shape = data.event_shape
    grey = data.binarization == "none"
    outputs = (2 * shape[0], *shape[1:]) if grey else shape
    decoder = pv.networks.MLP(latent_dim, [hidden], outputs)
    vae = pv.VAE(
        prior=pv.priors.StandardNormal(latent_dim),
        likelihood=(
            pv.likelihoods.Normal(decoder, scale="decoder", sigmoid_mean=True)
            if grey
            else pv.likelihoods.Bernoulli(decoder)
        ),
        guide=pv.guides.DiagonalNormal(pv.networks.MLP(shape, [hidden], 2 * latent_dim)),
    )
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.normal_(0, init_sd)
    return vae


def optimizer(name: str, step_size: float, vae: pv.VAE, num_data: int) -> torch.optim.Optimizer:
    """Return the optimizer, with log p(theta) = log N(theta; 0, I) / N as the model's weight decay.

    The bound is per datum, so the gradient of the prior is -theta / N (MAP, section 5).
    """
    kind = {"adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam}[name]
    groups = [
        {"params": list(vae.model.parameters()), "weight_decay": 1 / num_data},
        {"params": list(vae.guide.parameters())},
    ]
    return kind(groups, lr=step_size)


def algorithm_1(
    vae: pv.VAE,
    data: pv.data.Dataset,
    samples: int,
    optim: torch.optim.Optimizer,
    loss: Any,
    seed: int,
    points: int = 1,
) -> Iterator[int]:
    """Maximize the bound on random minibatches of M data.

    Yields the samples seen, `points` times, evenly on a logarithmic axis.
    """
    programs = (pv.objectives.per_datum(p, len(data)) for p in (vae.model, vae.guide))  # N/M, eq. 8
    svi = pv.SVI(*programs, optim, loss)

    def step(index: Tensor, generator: torch.Generator) -> None:
        svi.step(*data.draw_batch(index, generator))

    yield from minibatches(step, len(data), samples, seed, points)


def minibatches(
    step: Step, num_data: int, samples: int, seed: int, points: int, updates: int = 1
) -> Iterator[int]:
    """Call `step` on random minibatches; yield as `algorithm_1`, with M data per update."""
    generator = torch.Generator().manual_seed(seed)
    steps = max(1, samples // (BATCH_SIZE * updates))
    marks = set(np.geomspace(max(1, steps / 1000), steps, points + 1)[1:].round().astype(int))
    console = Console(stderr=True)
    hidden = not console.is_terminal
    for count in track(range(1, steps + 1), "training", console=console, disable=hidden):
        with pyro.validation_enabled(False):
            step(torch.randint(num_data, (BATCH_SIZE,), generator=generator), generator)
        if count in marks:
            yield count * BATCH_SIZE * updates


def bound(vae: pv.VAE, data: pv.data.Dataset, count: int) -> float:
    """Return the ELBO (eq. 3) of the first `count` data, in nats per datum, with fixed noise."""
    x = data[:count]
    programs = (pv.objectives.per_datum(p, len(x)) for p in (vae.model, vae.guide))
    with torch.random.fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
        torch.manual_seed(0)
        return -TraceMeanField_ELBO().loss(*programs, x)


def settings(data: pv.data.Dataset, samples: float, seed: int, **options: Any) -> dict[str, Any]:
    """Return the settings that reproduce a result, for its JSON file."""
    of_data = {"dataset": data.name, "binarization": data.binarization}
    return {**of_data, "samples": int(samples), "seed": seed, **options}


def write(path: Path, results: Any) -> None:
    """Write results as JSON by an atomic rename, so that an interruption leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(results, indent=1) + "\n")
    aside.replace(path)
