"""Where the ELBO loses against log p(x): the guide's family, or the encoder?

Cremer, Li & Duvenaud (2018), eq. 7 and 8, for q* the best member of the family for a datum:

    log p(x) - ELBO(q) = [log p(x) - ELBO(q*)]  +  [ELBO(q*) - ELBO(q)]
                          approximation gap         amortization gap

The family is what the guide makes of any output of its encoder: q* is found for each datum by
stochastic gradient ascent of its ELBO over that output, from the encoder's own. Noise of the
gradients keeps the steps around q*, so that their mean is taken, the later ones weighing more
(Shamir & Zhang 2013, polynomial-decay averaging).
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pyro_vae.data.dataset import Data, as_dataset
from pyro_vae.pairs.chunking import data_per_chunk, map_chunks
from pyro_vae.pairs.log_weights import elbo, importance_bound, pareto_khat
from pyro_vae.pairs.pair import PairLike
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.runtime.devices import device_of
from pyro_vae.runtime.random_state import preserved_state


@dataclass(frozen=True)
class Gaps:
    """Bounds and gaps in nats, arrays of shape `(num_data,)`.

    `elbo` is the encoder's, `best_elbo` that of the best q of the family, `log_likelihood` the
    importance-weighted bound from the best q's draws, `khat` that of its weights.
    """

    elbo: np.ndarray
    best_elbo: np.ndarray
    log_likelihood: np.ndarray
    khat: np.ndarray

    @property
    def approximation(self) -> np.ndarray:
        """Log p(x) - ELBO(q*): what the family of the guide costs."""
        return self.log_likelihood - self.best_elbo

    @property
    def amortization(self) -> np.ndarray:
        """ELBO(q*) - ELBO(q): what the encoder costs."""
        return self.best_elbo - self.elbo

    def __rich__(self) -> Table:
        table = Table("nats per datum", "mean", "standard error", "median")
        for name in ("elbo", "best_elbo", "log_likelihood", "approximation", "amortization"):
            values = getattr(self, name)
            se = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            table.add_row(name, f"{values.mean():.2f}", f"{se:.2f}", f"{np.median(values):.2f}")
        return table

    def __str__(self) -> str:
        console = Console(width=80)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def gaps(
    pair: PairLike,
    x: Data,
    *,
    encoder: nn.Module | None = None,
    num_steps: int = 200,
    num_particles: int = 8,
    learning_rate: float = 0.1,
    num_samples: int = 1000,
    seed: int = 0,
    progress: bool | None = None,
) -> Gaps:
    """Split what the ELBO loses into approximation and amortization gap, for each datum.

    Args:
        pair: anything with `.model` and `.guide`, every latent in the plate over the data.
        x: shape `(num_data, *event)`; or a tuple `(x, y, ...)` or a `DataLoader`, as for `fit`.
        encoder: the module of the guide whose output, one row for each datum, gives the parameters
            of q; by default `pair.guide.posterior.encoder`, as in a `VAE`.
        num_steps: of Adam for each datum.
        num_particles: draws for each datum and step.
        learning_rate: of Adam, in units of the encoder's output: no step is much longer.
        num_samples: draws for each datum for the bounds and log p(x).
        seed: of the draws; the random state is left as it was found. No parameter changes.
        progress: Whether to show a progress bar; by default if standard error is a terminal.

    Raises:
        PairError: when a latent stands outside the plate over the data.
        ValueError: when the guide's encoder is not known, or a latent cannot be reparameterized.
    """
    data = as_dataset(x).to(device_of(pair.model, pair.guide))
    encoder = encoder or getattr(getattr(pair.guide, "posterior", None), "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ValueError(
            "the guide has no posterior.encoder: name the module whose output gives the parameters "
            "of q for each datum by encoder="
        )
    rows = data_per_chunk(data.event_shape, num_particles)

    def score(batch: tuple[Tensor, ...], _: int) -> dict[str, Tensor]:
        first = _encoded(sampler, encoder, batch)
        with outputs(encoder, first):
            before = sampler.log_weights(batch, num_samples, num_particles).log_weights
        best = _optimize(sampler, encoder, batch, first, num_steps, num_particles, learning_rate)
        with outputs(encoder, best):
            after = sampler.log_weights(batch, num_samples, num_particles).log_weights
        return {
            "elbo": elbo(before),
            "best_elbo": elbo(after),
            "log_likelihood": importance_bound(after),
            "khat": pareto_khat(after),
        }

    with preserved_state(seed):
        sampler = Sampler(pair, data.batch(slice(2)))
        found = map_chunks(
            data, score, rows=rows, seed=seed, description="inference gaps", progress=progress
        )
    return Gaps(**{name: values.numpy() for name, values in found.items()})


def _optimize(
    sampler: Sampler,
    encoder: nn.Module,
    batch: tuple[Tensor, ...],
    first: tuple[Tensor, ...],
    num_steps: int,
    num_particles: int,
    learning_rate: float,
) -> tuple[Tensor, ...]:
    """Return the encoder's outputs that maximize the ELBO of each datum, from the first ones."""
    leaves = [output.clone().requires_grad_() for output in first]
    means = [output.clone() for output in first]
    # Each datum's ELBO depends on its own row, and Adam scales each number by its own gradients:
    # all data are optimized at once as they would be alone.
    optimizer = torch.optim.Adam(leaves, lr=learning_rate, betas=(0.9, 0.99))
    for step in range(num_steps):
        with outputs(encoder, tuple(leaves)):
            loss = -sampler.rsample(batch, num_particles).log_weights.mean(0).sum()
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        if any(gradient is None for gradient in gradients):
            raise ValueError(
                "the ELBO has no gradient for the encoder's output: the gaps need latents that can "
                "be reparameterized, continuous ones"
            )
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        optimizer.step()
        for mean, leaf in zip(means, leaves, strict=True):
            # Of n steps so far, step t weighs t (t + 1): where the search began is forgotten.
            mean.lerp_(leaf.detach(), 3 / (step + 3))
    return tuple(means)


def _encoded(sampler: Sampler, encoder: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the encoder's output when the guide runs on a batch."""
    seen: list[Any] = []
    handle = encoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        sampler.draw(batch, 1)
    finally:
        handle.remove()
    if not seen:
        raise ValueError("the guide does not call the module that was named by encoder=")
    return seen[0] if isinstance(seen[0], tuple) else (seen[0],)


@contextlib.contextmanager
def outputs(encoder: nn.Module, output: tuple[Tensor, ...]) -> Iterator[None]:
    """Let an encoder give these outputs, one row for each datum, whatever it is called on."""

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        # Where the data are repeated for each draw, so is the output.
        given = [out.repeat(len(x) // len(out), *(1,) * (out.dim() - 1)) for out in output]
        return given[0] if len(given) == 1 else tuple(given)

    encoder.forward = forward  # hides the class's method
    try:
        yield
    finally:
        del encoder.forward
