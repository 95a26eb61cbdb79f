"""Posterior collapse: latents that the encoder or the decoder does not use."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from pyro_vae.arguments import Seed, Whole, checked
from pyro_vae.data.any_data import Data
from pyro_vae.pairs.batching import batch_of
from pyro_vae.pairs.checked_rows import CheckedRows
from pyro_vae.pairs.chunking import data_per_chunk, fitting, map_chunks
from pyro_vae.pairs.inputs import dataset_of
from pyro_vae.pairs.pair import AnyPair
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.pairs.state import unchanged
from pyro_vae.pairs.supports import support_of
from pyro_vae.runtime.random_state import preserved_state
from pyro_vae.runtime.tables import rendered

# Burda, Grosse & Salakhutdinov (2015), section 5.3.1, who have a prior of variance 1.
ACTIVE_VARIANCE = 0.01  # in units of the prior variance, since the scale of a latent is arbitrary
# The decoder ignores z if the latents of another datum cost less than this, in nats.
IGNORED_NATS = 0.01
PRIOR_DRAWS = 5000  # of a chunk of data with the same prior
SHOWN = 50  # latents that are printed


@dataclass(frozen=True)
class Collapse:
    """Use of the latents; arrays of shape `(latent_dim,)` over the entries of all latent sites.

    Printing it shows a row for each of the first 50 latents, and the verdict.

    Each datum has its own prior if the prior depends on a context, as p(z|y) of a `ConditionalVAE`.
    The aggregate prior is then the mixture of the priors of the data.

    Attributes:
        kl: KL(q(z_i|x) || p(z_i)) in nats, averaged over data. It is from the first two moments of
            the marginals, exact if both are normal, or from the frequencies of discrete values.
        mean_variance: Variance over data of the posterior mean E[z_i|x], minus the prior mean of
            the datum, as a share of the mean prior variance of the data.
        aggregate_mean: Mean of z_i over data and posterior, minus the mean of the aggregate prior,
            in standard deviations of the aggregate prior. It is 0 if the aggregate posterior equals
            the aggregate prior.
        aggregate_sd: Standard deviation of z_i over data and posterior, in standard deviations of
            the aggregate prior. It is 1 if the aggregate posterior equals the aggregate prior.
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
        """Whether the posterior mean of each latent varies by over 0.01 of the prior variance."""
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
                f"{num_active} of {num_units} latents are active; the posterior means of the "
                "others hardly depend on x. A smaller latent_dim would be sufficient"
            )
        return f"all {num_units} latents are active"

    def __rich__(self) -> Table:
        drop = f"reconstruction drop {self.reconstruction_drop:.3g} nats per datum"
        more = len(self.kl) - SHOWN
        rest = f"and {more} more latents\n" if more > 0 else ""
        table = Table(
            "latent", "KL, nats", "variance of mean", "aggregate mean", "aggregate sd", "active",
            caption=f"{rest}{self.verdict};\n{drop}",
        )  # fmt: skip
        columns = (self.kl, self.mean_variance, self.aggregate_mean, self.aggregate_sd)
        for i, values in enumerate(zip(*(column[:SHOWN] for column in columns), strict=True)):
            active = "yes" if self.active[i] else "no"
            table.add_row(str(i), *(f"{value:.3f}" for value in values), active)
        return table

    def __str__(self) -> str:
        return rendered(self, width=100)


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
        z = _flat(draws.latents)
        swapped = {name: value.roll(1, dims=1) for name, value in draws.latents.items()}
        log_likelihood = sampler.model_at(batch, swapped)[1]
        return {
            "mean": z.mean(0),
            "variance": z.var(0),
            "draw": z[0],
            "drop": (draws.log_likelihood - log_likelihood).mean(0),
            **_compared_with_prior(sampler, batch, z, discrete),
        }

    checked = CheckedRows(pair, data)
    with torch.no_grad(), unchanged(pair.model, pair.guide, seed=seed):
        sampler = Sampler(pair, data.batch(slice(2)))
        discrete = _discrete_entries(sampler)
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
    return _collapse(found, num_samples)


def _collapse(found: dict[str, Tensor], num_samples: int) -> Collapse:
    """Return the use of the latents from the moments of posterior and prior of each datum."""
    variance, prior_variance = found["variance"], found["prior_variance"]
    shift = found["mean"] - found["prior_mean"]
    # Means of S samples have the variance v/S, which biases their squares. The logarithm of a
    # sample variance is biased by -1/S, and its inverse by a factor 1 + 2/S, for normal samples.
    noise = variance / num_samples + prior_variance / found["prior_count"]
    precision = (1 - 2 / found["prior_count"]) / prior_variance
    kl = (shift.square() - noise + variance) * precision - 1 - (variance / prior_variance).log()
    bias = 1 / num_samples - 1 / found["prior_count"]
    discrete = found["discrete_kl"]
    center = found["prior_mean"].mean(0)
    unit = (prior_variance.mean(0) + found["prior_mean"].var(0)).sqrt()
    spread = found["mean"].var(0) - variance.mean(0) / num_samples + variance.mean(0)
    return Collapse(
        kl=torch.where(discrete.isnan(), (kl - bias) / 2, discrete).mean(0).numpy(),
        mean_variance=((shift.var(0) - noise.mean(0)) / prior_variance.mean(0)).numpy(),
        aggregate_mean=((found["mean"].mean(0) - center) / unit).numpy(),
        aggregate_sd=(spread.sqrt() / unit).numpy(),
        draws=((found["draw"] - center) / unit).numpy(),
        reconstruction_drop=float(found["drop"].double().mean()),
    )


def _compared_with_prior(
    sampler: Sampler, batch: tuple[Tensor, ...], z: Tensor, discrete: list[int]
) -> dict[str, Tensor]:
    """Return the moments of the prior of each datum, their number of samples, and discrete KLs.

    If all data have the same prior, its samples are pooled.

    Args:
        sampler: Sampler of the pair.
        batch: Data.
        z: Samples of the guide, shape `(samples, data, latent_dim)`.
        discrete: Positions of the latents with discrete values.
    """
    num_samples, num_data, _ = z.shape
    shared = _same_prior(sampler, batch)
    draws = _flat(sampler.from_prior(batch, -(-PRIOR_DRAWS // num_data) if shared else num_samples))
    if shared:
        draws = draws.flatten(0, 1)[:, None]
    kl = torch.full(z.shape[1:], torch.nan, dtype=z.dtype, device=z.device)
    for i in discrete:
        kl[:, i] = _divergence(z[..., i], draws[..., i])
    found = {"prior_mean": draws.mean(0), "prior_variance": draws.var(0)}
    rows = {name: value.expand(num_data, -1) for name, value in found.items()}
    count = torch.full((num_data, 1), float(len(draws)), dtype=z.dtype, device=z.device)
    return {**rows, "prior_count": count, "discrete_kl": kl}


def _discrete_entries(sampler: Sampler) -> list[int]:
    """Return the positions in `_flat` of the latents with discrete values."""
    with preserved_state():
        sites = sampler.programs.run_model(batch_of(sampler.few), 1)
        latents = sampler.from_prior(sampler.few, 1)
    flags = {
        name: torch.full_like(value, float(support_of(sites[name].distribution).is_discrete))
        for name, value in latents.items()
    }
    return _flat(flags)[0, 0].nonzero()[:, 0].tolist()


def _divergence(z: Tensor, prior: Tensor) -> Tensor:
    """Return KL(q || p) of the values of one discrete latent in nats, of each datum.

    The frequencies of K values in S samples increase it by (K - 1) / 2S (Miller 1955), which is
    subtracted. Half a sample is added to each value of the prior.

    Args:
        z: Samples of q, shape `(samples, data)`.
        prior: Samples of p, shape `(samples, data)` or `(samples, 1)`.
    """
    values, index = torch.cat([z.flatten(), prior.flatten()]).unique(return_inverse=True)
    counts = []
    for part in (index[: z.numel()].view(z.shape), index[z.numel() :].view(prior.shape)):
        offset = len(values) * torch.arange(part.shape[1], device=part.device)
        found = (part + offset).flatten().bincount(minlength=len(values) * part.shape[1])
        counts.append(found.view(part.shape[1], -1).double())
    q, p = counts[0] / len(z), counts[1] + 0.5
    terms = torch.xlogy(q, q) - q * (p / p.sum(1, keepdim=True)).log()
    return terms.sum(1) - ((q > 0).sum(1) - 1) / (2 * len(z))


def _same_prior(sampler: Sampler, batch: tuple[Tensor, ...]) -> bool:
    """Return whether the prior is the same for all data: the same noise gives the same samples."""
    found = []
    for rows in (batch, tuple(part.roll(1, dims=0) for part in batch)):
        with preserved_state(seed=0):
            found.append(_flat(sampler.from_prior(rows, 1)))
    return torch.equal(*found)


def _flat(latents: dict[str, Tensor]) -> Tensor:
    """Concatenate the latents of all sites: `(samples, data, latent_dim)`, in float64."""
    return torch.cat(
        [value.flatten(2) if value.dim() > 2 else value[..., None] for value in latents.values()],
        dim=-1,
    ).double()
