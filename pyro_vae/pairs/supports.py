"""Supports of distributions, and the check that data are in those of their likelihoods."""

import math
from collections.abc import Mapping
from typing import TypeAlias

import torch
from pyro.distributions import (
    MixtureSameFamily,
    NanMaskedMultivariateNormal,
    NanMaskedNormal,
    SineBivariateVonMises,
    SineSkewed,
    Unit,
    VonMises,
)
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints
from torch.distributions.constraints import Constraint

from pyro_vae.distributions.independent import unwrap_independent
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.sites import Node

Observed: TypeAlias = Mapping[str, Node]  # observed sites of a trace by name

# How messages name the position of a datum: among all data, or in a batch of them.
DATUM, IN_BATCH = "datum {}", "row {} of a batch"
# Distributions of angles. torch calls their support real, but they sample from [-pi, pi], and their
# densities integrate to one over a period, not over the real line.
CIRCULAR = (VonMises, SineBivariateVonMises, SineSkewed)


def support_name(support: Constraint) -> str:
    """Return the name of a support, without the shape of its events. Tensors give their range."""
    support = elementwise(support)
    if not any(isinstance(value, Tensor) for value in vars(support).values()):
        return str(support).removesuffix("()")
    bounds = ", ".join(f"{name}={_range(value)}" for name, value in vars(support).items())
    return f"{type(support).__name__.removeprefix('_')}({bounds})"


def _range(value: object) -> str:
    if not isinstance(value, Tensor):
        return str(value)
    low, high = value.min().item(), value.max().item()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def elementwise(support: Constraint) -> Constraint:
    """Return the support of one entry of an event."""
    while hasattr(support, "base_constraint"):  # independent events, mixtures
        support = support.base_constraint
    return support


def inner_of(distribution: Distribution) -> Distribution:
    """Return the distribution inside `.to_event()`, `.expand()` and `.mask()`."""
    return unwrap_independent(distribution, ExpandedDistribution, MaskedDistribution)


def bounds_of(support: Constraint) -> dict[str, Tensor]:
    """Return the bounds of a support that are tensors, and may differ between entries."""
    return {n: v for n, v in vars(elementwise(support)).items() if isinstance(v, Tensor)}


def known_support(distribution: Distribution) -> Constraint | None:
    """Return the support of a distribution, or None if it does not define one, as flows of zuko."""
    try:
        return distribution.support
    except (NotImplementedError, AttributeError):  # AttributeError: of the distribution inside
        return None


def support_of(distribution: Distribution) -> Constraint:
    """Return the support of a distribution; real if it does not define one."""
    support = known_support(distribution)
    real = constraints.independent(constraints.real, len(distribution.event_shape))
    return real if support is None else support


def period_of(distribution: Distribution) -> Constraint | None:
    """Return [-pi, pi], the support of the samples, for a distribution of angles, else None."""
    entry = inner_of(distribution)
    while isinstance(entry, MixtureSameFamily):
        entry = inner_of(entry.component_distribution)
    if not isinstance(entry, CIRCULAR):
        return None
    period = constraints.interval(-math.pi, math.pi)
    return constraints.independent(period, len(distribution.event_shape))


def kind_of(distribution: Distribution) -> str:
    """Return the name of the distribution's class, inside `.to_event()` and `.expand()`."""
    return type(unwrap_independent(distribution, ExpandedDistribution)).__name__


def density_support(distribution: Distribution) -> Constraint:
    """Return the support on which the density integrates to one: one period, for angles."""
    return period_of(distribution) or support_of(distribution)


def fixed_support(distribution: Distribution) -> Constraint | None:
    """Return the support of one entry if the class of the distribution defines it, else None.

    Such a support, as that of Bernoulli, is the same for all data. The support of an instance, as
    {0, ..., n} of a binomial distribution, may differ from datum to datum.
    """
    entry = unwrap_independent(distribution, ExpandedDistribution)
    support = getattr(type(entry), "support", None)
    is_fixed = isinstance(support, Constraint) and not constraints.is_dependent(support)
    return support if is_fixed else None


def check_support(
    distribution: Distribution,
    value: Tensor,
    name: str = "x",
    mask: Tensor | bool | None = None,
    *,
    rows: range | None = None,
    place: str = DATUM,
    nan_passes: bool = False,
) -> None:
    """Check that an observation is in its distribution's support.

    Distributions that define no support are not checked.

    Args:
        distribution: Distribution of the observation.
        value: The observation.
        name: Name of the site.
        mask: Mask of the distribution's batch shape. Values that it masks out are not checked.
        rows: Positions of the data in all data, for the message.
        place: How the message names a position.
        nan_passes: Whether observations with NaN pass. Their log density is NaN.

    Raises:
        PairError: If a value is outside the support. The message suggests a change.
    """
    if not value.numel():
        return  # a `pyro.factor`, or no data
    batch_shape = value.shape[: value.dim() - len(distribution.event_shape)]

    def inside(value: Tensor) -> Tensor:
        found = _inside(distribution, value, nan_passes)
        return found if mask is None else found | ~torch.as_tensor(mask, device=value.device)

    good = inside(value)
    if not good.all() and value.is_floating_point():
        good = good | inside(value.double())  # sums, as on the simplex, are rounded in float32
    if good.all():
        return
    outside = ~good.expand(torch.broadcast_shapes(good.shape, batch_shape))
    bad = value.expand(*outside.shape, *value.shape[len(batch_shape) :])[outside]
    support = support_of(distribution)
    low, high = _limits(bad)
    raise PairError(
        f"observation {name!r} holds values in [{low:g}, {high:g}] (first at "
        f"{place.format(_first_datum(outside, rows))}), outside the likelihood's support "
        f"{support_name(support)}: {_fix(support, bad, low, high)}"
    )


def check_observed(
    sites: Observed, rows: range, *, place: str = DATUM, nan_passes: bool = False
) -> None:
    """Check the observed sites of a trace of some data.

    Args:
        sites: The sites.
        rows: Positions of the data in all data.
        place: How the message names a position.
        nan_passes: Whether observations with NaN pass. Their log density is NaN.

    Raises:
        PairError: If a value is outside the support of its distribution.
    """
    for name, node in sites.items():
        if not isinstance(node["fn"], Unit):
            distribution, value, mask = node["fn"], node["value"], node["mask"]
            check_support(
                distribution, value, name, mask, rows=rows, place=place, nan_passes=nan_passes
            )


def check_gradients(sites: Observed, rows: range, place: str = DATUM) -> None:
    """Check that no observation is a masked NaN, so that log densities can be differentiated.

    The log density of a masked value is 0, but its gradient is 0 times the gradient at the value.

    Args:
        sites: The observed sites of a trace of some data.
        rows: Positions of the data in all data.
        place: How the message names a position.

    Raises:
        PairError: If a NaN is masked out.
    """
    for name, node in sites.items():
        value = node["value"]
        if isinstance(node["fn"], Unit) or not value.isnan().any():
            continue
        # Events that are outside the support because of NaN alone.
        nan = _inside(node["fn"], value, nan_passes=True, masked=False)
        nan = nan & ~_inside(node["fn"], value, nan_passes=False, masked=False)
        if nan.any():
            raise PairError(
                f"observation {name!r} holds NaN that is masked out (first at "
                f"{place.format(_first_datum(nan, rows))}): its log density is 0, but the gradient "
                "is NaN. Put a valid value below the mask, as in obs=torch.where(mask, x, 0.0)"
            )


def _has_nan(value: Tensor, batch_dim: int) -> Tensor:
    """Return a mask of the events with NaN."""
    return value.isnan().reshape(*value.shape[:batch_dim], -1).any(-1)


def _inside(
    distribution: Distribution, value: Tensor, nan_passes: bool, masked: bool = True
) -> Tensor:
    """Return a mask of the values in the support, of the distribution's batch shape.

    The mask of a distribution inside `.to_event()` applies to its entries. Values that it masks out
    count as inside if `masked` is true.
    """
    if isinstance(distribution, Independent):
        entries = _inside(distribution.base_dist, value, nan_passes, masked)
        return entries.flatten(-distribution.reinterpreted_batch_ndims).all(-1)
    if isinstance(distribution, MaskedDistribution):
        good = _inside(distribution.base_dist, value, nan_passes, masked)
        return good | ~torch.as_tensor(distribution._mask, device=value.device) if masked else good
    if isinstance(distribution, ExpandedDistribution):
        return _inside(distribution.base_dist, value, nan_passes, masked)
    support = known_support(distribution)
    if support is None:
        batch_shape = value.shape[: value.dim() - len(distribution.event_shape)]
        return torch.ones(batch_shape, dtype=torch.bool, device=value.device)
    good = support.check(value)
    nan_passes = nan_passes or isinstance(
        distribution, NanMaskedNormal | NanMaskedMultivariateNormal
    )
    return good | _has_nan(value, value.dim() - support.event_dim) if nan_passes else good


def _first_datum(outside: Tensor, rows: range | None) -> int:
    """Return the position of the first datum outside; the plate of the data has its size."""
    place = outside.nonzero()[0].tolist() or [0]
    if rows is None:
        return place[0]
    sizes = list(outside.shape)
    dim = sizes.index(len(rows)) if len(rows) in sizes else 0
    return rows[min(int(outside.movedim(dim, 0).nonzero()[0, 0]), len(rows) - 1)]


def _limits(values: Tensor) -> tuple[float, float]:
    """Return minimum and maximum of the values that are not NaN; NaN if there are none."""
    known = values[~values.isnan()]
    return (known.min().item(), known.max().item()) if len(known) else (torch.nan, torch.nan)


def _fix(support: Constraint, values: Tensor, low: float, high: float) -> str:
    """Return advice for values outside a support."""
    name = support_name(support)
    if values.isnan().any() and not support.check(torch.full_like(values, torch.nan)).any():
        return "replace or drop the NaN entries, or wrap the likelihood in likelihoods.Missing"
    if name == "Boolean" and low >= 0 and high <= 1:
        return (
            "binarize them (binarize='dynamic', 'static' or 'threshold' in pv.data), or use a "
            "likelihood for gray values such as ContinuousBernoulli"
        )
    if name == "Simplex":
        return "divide each row by its sum, or choose a likelihood with this support"
    if name.startswith(("Integer", "Multinomial")):
        if (values % 1 != 0).any():
            return "give whole numbers, or choose a likelihood of continuous values"
        return "correct the counts or the bounds of the distribution, such as its total_count"
    if low >= 0 and high > 1 and (name == "Boolean" or "Interval" in name):
        return "scale bytes 0..255 to 0..1 by x / 255, or choose a likelihood with this support"
    return "rescale x, or choose a likelihood with this support"
