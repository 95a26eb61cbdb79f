"""Posterior collapse: latents that the encoder or the decoder does not use."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import Seed, Whole, checked
from pyro_vae.data.dataset import Data
from pyro_vae.pairs.batching import batch_of
from pyro_vae.pairs.checked_rows import CheckedRows
from pyro_vae.pairs.chunking import data_per_chunk, fitting, map_chunks
from pyro_vae.pairs.inputs import dataset_of
from pyro_vae.pairs.pair import AnyPair
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.pairs.state import unchanged

# Burda, Grosse & Salakhutdinov (2015), section 5.3.1.
ACTIVE_VARIANCE = 0.01
# The decoder ignores z if the latents of another datum cost less than this, in nats.
IGNORED_NATS = 0.01


@dataclass(frozen=True)
class Collapse:
    """Use of the latents; arrays of shape `(latent_dim,)` over the entries of all latent sites.

    Attributes:
        kl: KL(q(z_i|x) || p(z_i)) in nats, averaged over data, from the first two moments of the
            marginals. It is exact if both are normal.
        mean_variance: Variance over data of the posterior mean E[z_i|x].
        aggregate_mean: Mean of z_i over data and posterior, minus the prior mean, in prior standard
            deviations. It is 0 if the aggregate posterior equals the prior.
        aggregate_sd: Standard deviation of z_i over data and posterior, in prior standard
            deviations. It is 1 if the aggregate posterior equals the prior.
        draws: One sample of z for each datum in the same units, shape `(num_data, latent_dim)`.
        reconstruction_drop: Decrease of E[log p(x|z)] in nats per datum when each datum gets the
            latents of another one. It is near 0 if the decoder ignores z.

    Example:
        >>> import numpy as np, pyro_vae as pv
        >>> zeros, ones = np.zeros(2), np.ones(2)
        >>> latents = pv.Collapse(zeros, np.array([0.5, 0.0]), zeros, ones, np.zeros((3, 2)), 1.0)
        >>> latents.active, latents.collapsed
        (array([ True, False]), False)

    See also: `collapse`, `diagnose`, `plots.kl_by_dimension`.
    """

    kl: np.ndarray
    mean_variance: np.ndarray
    aggregate_mean: np.ndarray
    aggregate_sd: np.ndarray
    draws: np.ndarray
    reconstruction_drop: float

    @property
    def active(self) -> np.ndarray:
        """Whether the posterior mean of each latent has a variance over data above 0.01."""
        return self.mean_variance > ACTIVE_VARIANCE

    @property
    def collapsed(self) -> bool:
        """Whether no latent is active or the decoder ignores z."""
        return not self.active.any() or self.reconstruction_drop < IGNORED_NATS

    @property
    def verdict(self) -> str:
        """One sentence that summarizes the use of the latents."""
        num_active, num_units = int(self.active.sum()), len(self.active)
        if num_active == 0:
            return "collapsed: the posterior mean of no latent depends on x"
        if self.reconstruction_drop < IGNORED_NATS:
            return (
                "collapsed: the decoder ignores z; the latents of another datum reconstruct x "
                f"equally well (within {self.reconstruction_drop:.3f} nats)"
            )
        if num_active < num_units:
            return (
                f"{num_active} of {num_units} latents are active; the others equal the prior. A "
                "smaller latent_dim would be sufficient"
            )
        return f"all {num_units} latents are active"


@checked
def collapse(
    pair: AnyPair,
    x: Data,
    *,
    num_samples: Annotated[int, Whole(2)] = 100,
    seed: Seed = 0,
    progress: bool | None = None,
) -> Collapse:
    """Measure how much each latent depends on the data and affects the reconstruction.

    Args:
        pair: Object with `.model` and `.guide`. Every latent is in the plate over the data.
        x: At least two data, shape `(num_data, *event)`, or a tuple `(x, y, ...)` or a `DataLoader`
            as for `fit`.
        num_samples: Number of guide samples for each datum.
        seed: Random seed. The global random state is restored.
        progress: Whether to show a progress bar; by default if standard error is a terminal.

    Returns:
        The use of each latent, as a `Collapse`.

    Raises:
        PairError: If a latent is outside the plate over the data.
        ValueError: If there are fewer than two data or samples.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
        ... )
        >>> latents = pv.collapse(vae, torch.rand(4, 5).round(), num_samples=10)
        >>> latents.kl.shape, latents.draws.shape
        ((2,), (4, 2))

    See also: `diagnose`, `plots.kl_by_dimension`, `plots.aggregate_posterior`.
    """
    data = dataset_of(pair, x)
    if len(data) < 2:
        raise ValueError(f"expected at least 2 data, got {len(data)}")
    rows = data_per_chunk(data.event_shape, num_samples)

    def score(batch: tuple[Tensor, ...], _: int) -> dict[str, Tensor]:
        draws = sampler.draw(batch, num_samples)
        z = (_flat(draws.latents) - prior.mean(0)) / prior.std(0)
        swapped = {name: value.roll(1, dims=1) for name, value in draws.latents.items()}
        log_likelihood = sampler.model_at(batch, swapped)[1]
        return {
            "mean": z.mean(0),
            "variance": z.var(0),
            "draw": z[0],
            "drop": (draws.log_likelihood - log_likelihood).mean(0),
        }

    checked = CheckedRows(pair, data)
    with torch.no_grad(), unchanged(pair.model, pair.guide, seed=seed):
        sampler = Sampler(pair, data.batch(slice(2)))
        prior = _prior_draws(sampler, data.batch(slice(1)), num_samples=5000)
        rows, _ = fitting(rows, num_samples, sampler.draw, data.batch(slice(4)))
        # At least two data in a chunk: latents are swapped within it.
        found = map_chunks(
            checked,
            score,
            rows=max(2, rows),
            seed=seed,
            least=2,
            description="collapse",
            progress=progress,
        )
    mean, variance = found["mean"], found["variance"]
    # The variance of a mean of S samples biases its square by variance/S, and the KL by 1/(2S).
    square = mean.square() - variance / num_samples
    kl = 0.5 * (square + variance - 1 - variance.log()) - 0.5 / num_samples
    mean_variance = mean.var(0) - variance.mean(0) / num_samples
    return Collapse(
        kl=kl.mean(0).numpy(),
        mean_variance=(mean_variance * prior.var(0).cpu()).numpy(),
        aggregate_mean=mean.mean(0).numpy(),
        aggregate_sd=(mean_variance + variance.mean(0)).sqrt().numpy(),
        draws=found["draw"].numpy(),
        reconstruction_drop=float(found["drop"].double().mean()),
    )


def _prior_draws(sampler: Sampler, datum: tuple[Tensor, ...], num_samples: int) -> Tensor:
    """Sample latents from the prior, shape `(num_samples, latent_dim)`."""
    sites = sampler.programs.run_model(batch_of(datum), num_samples, observe=False)
    values = {name: sites[name].rows(sampler.plate) for name in sampler.programs.local_latents}
    return _flat(values)[:, 0]


def _flat(latents: dict[str, Tensor]) -> Tensor:
    """Concatenate the latents of all sites: `(samples, data, latent_dim)`, in float64."""
    return torch.cat(
        [value.flatten(2) if value.dim() > 2 else value[..., None] for value in latents.values()],
        dim=-1,
    ).double()
