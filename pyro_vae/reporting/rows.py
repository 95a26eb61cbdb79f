"""Numbers for each row of data: moments of latents, contributions of entries, imputed entries."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.sources.table_schema import center
from pyro_vae.distributions.entrywise import entries_of
from pyro_vae.models.any_vae import AnyVAE
from pyro_vae.models.conditional import ConditionalVAE
from pyro_vae.pairs.chunking import data_per_chunk, fitting, map_chunks


@torch.no_grad()
def latent_moments(vae: AnyVAE, data: Dataset, seed: int) -> tuple[Tensor, Tensor]:
    """Return means and standard deviations of `vae.encode`, each `(num_data, latent_dim)`.

    They are estimated from 100 samples if q(z|x) has no closed form for them, for example a flow.
    """

    def moments(batch: tuple[Tensor, ...], _: int) -> dict[str, Tensor]:
        q = vae.encode(*batch)
        try:
            return {"mean": q.mean, "scale": q.stddev}
        except NotImplementedError:
            z = q.sample((100,))
            return {"mean": z.mean(dim=0), "scale": z.std(dim=0)}

    usual = data_per_chunk(data.event_shape, 1)
    rows, _ = fitting(usual, 1, moments, data.batch(slice(4)))
    found = map_chunks(data, moments, rows=rows, seed=seed)
    return found["mean"], found["scale"]


def sampled(vae: AnyVAE, data: Dataset, count: int) -> Tensor:
    """Sample x from a model; from p(x|y) in the contexts y of some data if it is conditional."""
    if isinstance(vae, ConditionalVAE):
        return vae.sample(contexts(data, count))
    return vae.sample(count)


def contexts(data: Dataset, count: int) -> Tensor:
    """Return the context y of some data, of which each is used equally often."""
    _, y = data.spread_batch(count)
    return y[torch.arange(count, device=y.device) % len(y)]


@torch.no_grad()
def contributions(vae: AnyVAE, data: Dataset, num_samples: int, seed: int) -> Tensor:
    """Return E_q log p(x_i|z) of each entry in nats, shape `(num_data, *event)`; 0 for NaN.

    Their sum over the entries is the term E log p(x|z) of the ELBO.

    Raises:
        ValueError: If the entries of the likelihood depend on each other.
    """

    def expected(batch: tuple[Tensor, ...], _: int) -> dict[str, Tensor]:
        given_z = vae.predictive(*batch, num_samples=num_samples)
        return {"entries": entries_of(given_z).log_prob(batch[0]).mean(dim=0)}

    rows = data_per_chunk(data.event_shape, num_samples)
    return map_chunks(data, expected, rows=rows, seed=seed)["entries"]


@torch.no_grad()
def imputed(
    vae: AnyVAE, data: Dataset, num_levels: Sequence[int], num_samples: int, seed: int
) -> dict[str, Tensor]:
    """Summarize samples of the missing entries of vectors. Observed entries are unchanged.

    Args:
        vae: Model of data with missing entries.
        data: Rows of shape `(num_data, num_columns)`, NaN for missing entries.
        num_levels: Number of levels of each column, 0 for numbers.
        num_samples: Number of samples for each row.
        seed: Random seed.

    Returns:
        Arrays of shape `(num_data, num_columns)`: `value`, the median, or the mode for levels;
        `share`, the share of the samples that are equal to the mode, NaN for numbers; and the ends
        of the central intervals of numbers, `low_50`, `high_50`, `low_90` and `high_90`.
    """
    levels = torch.tensor(num_levels).nonzero().flatten()
    quantiles = {"low_50": 0.25, "high_50": 0.75, "low_90": 0.05, "high_90": 0.95}

    def summary(batch: tuple[Tensor, ...], _: int) -> dict[str, Tensor]:
        draws = vae.completed(*batch, num_samples=num_samples)
        found = {name: draws.quantile(q, dim=0) for name, q in quantiles.items()}
        for interval in found.values():
            interval[:, levels] = torch.nan
        found["value"] = center(draws, num_levels)
        found["share"] = torch.full_like(found["value"], torch.nan)
        found["share"][:, levels] = (draws == found["value"]).float().mean(dim=0)[:, levels]
        return found

    rows = data_per_chunk(data.event_shape, num_samples)
    return map_chunks(data, summary, rows=rows, seed=seed)
