"""Likelihoods of the columns of a table, by their kind, with initial values from the data."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pyro_vae import likelihoods
from pyro_vae.data.sources.columns import Column
from pyro_vae.networks import MLP
from pyro_vae.part import Part

Block: TypeAlias = Callable[[int, list[Column], Tensor], Part]

OVERDISPERSED = 1.2  # ratio of variance to mean of counts from which they are not Poisson
EXTRA_ZEROS = 0.05  # share of zeros beyond those of a negative binomial, for zero inflation


def _normal(width: int, columns: list[Column], x: Tensor) -> Part:
    return likelihoods.Normal(MLP(width, [], len(columns)), "entrywise", **_scale(columns))


def _log_normal(width: int, columns: list[Column], x: Tensor) -> Part:
    return likelihoods.LogNormal(MLP(width, [], len(columns)), "entrywise", **_scale(columns))


def _scale(columns: list[Column]) -> dict[str, Any]:
    return {"shift": [c.shift for c in columns], "unit": [c.unit for c in columns]}


def _proportion(width: int, columns: list[Column], x: Tensor) -> Part:
    if not all(column.is_open for column in columns):
        return _normal(width, columns, x)  # a beta density is 0 or infinite at 0 and 1
    x = _filled(x, 0.2, 0.8)
    mean = x.nanmean(0).clamp(0.01, 0.99)
    found = likelihoods.Beta(MLP(width, [], len(columns), output_bias=mean.logit()), "entrywise")
    variance = (x - mean).square().nanmean(0).clamp_min(1e-6)
    # The beta distribution with these moments.
    concentration = mean * (1 - mean) / variance - 1
    _started(found.concentration.raw, concentration.clamp(0.1, 1e3))
    return found


def _counts(width: int, columns: list[Column], x: Tensor) -> Part:
    return counts_likelihood(lambda size, bias: MLP(width, [], size, output_bias=bias), x)


def counts_likelihood(
    decoder: Callable[[int, Tensor], Part], x: Tensor, library_size: float | None = None
) -> Part:
    """Return a likelihood of counts, by their dispersion and their share of zeros.

    Args:
        decoder: Returns a network with a number of outputs and an initial bias of the last layer.
        x: Counts of shape `(num_data, num_columns)`, NaN for missing ones.
        library_size: Total count of samples, if the total of each observation is given.
    """
    x = _filled(x, 0.0, 2.0)
    mean = x.nanmean(0)
    variance = (x - mean).square().nanmean(0)
    bias = mean.clamp_min(1e-3).log()
    if (variance <= OVERDISPERSED * mean).all():
        return likelihoods.Poisson(decoder(len(mean), bias), library_size=library_size)
    # The negative binomial with these moments has r = m^2 / (v - m). It is the initial value: steps
    # of an optimizer would not reach r = 100 from r = 1.
    r = (mean.square() / (variance - mean).clamp_min(1e-6)).clamp(0.1, 1e3)
    expected = (r * (r.log() - (r + mean).log())).exp()
    zeros = ((x == 0).float().sum(0)) / (~x.isnan()).float().sum(0)
    if (zeros - expected).max() > EXTRA_ZEROS:
        gate = torch.full_like(bias, -2.0)
        network = decoder(2 * len(mean), torch.cat([bias, gate]))
        inflated = likelihoods.ZeroInflatedNegativeBinomial(network, "entrywise", library_size)
        _started(inflated.inverse_dispersion.raw, r)
        return inflated
    found = likelihoods.NegativeBinomial(decoder(len(mean), bias), "entrywise", library_size)
    _started(found.inverse_dispersion.raw, r)
    return found


def _filled(x: Tensor, low: float, high: float) -> Tensor:
    """Return x with numbers from low to high in columns without a value in the training rows.

    All of the few values of a column may be in the rows for validation and tests.
    """
    between = torch.linspace(low, high, len(x), dtype=x.dtype, device=x.device)
    return torch.where(x.isnan().all(0), between[:, None], x)


def _started(parameter: torch.nn.Parameter, value: Tensor) -> None:
    """Set the raw value of a positive parameter, so that softplus(raw) is the value."""
    parameter.data.copy_(value + (-(-value).expm1()).log())


def _binary(width: int, columns: list[Column], x: Tensor) -> Part:
    bias = _filled(x, 0.0, 1.0).nanmean(0).clamp(0.01, 0.99).logit()
    return likelihoods.Bernoulli(MLP(width, [], len(columns), output_bias=bias))


def _category(width: int, columns: list[Column], x: Tensor) -> Part:
    levels = columns[0].num_levels
    shares = torch.stack([(x == level).float().mean(0) for level in range(levels)])
    bias = shares.clamp_min(1e-3).log().flatten()
    decoder = MLP(width, [], levels * len(columns), output_bias=bias)
    return likelihoods.Categorical(decoder, levels, spacing=1)


# The likelihood of each kind of column that is modelled.
BLOCKS: dict[str, Block] = {
    "real": _normal,
    "date": _normal,
    "positive": _log_normal,
    "proportion": _proportion,
    "count": _counts,
    "binary": _binary,
    "category": _category,
}
