"""Compare the support of a guide with that of the prior of its latent."""

import contextlib
import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Distribution,
    Geometric,
    Multinomial,
    NegativeBinomial,
    OneHotCategorical,
    TransformedDistribution,
    constraints,
    transform_to,
)
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import ComposeTransform, Transform
from torch.distributions.utils import logits_to_probs

from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.sites import Node
from pyro_vae.pairs.supports import (
    bounds_of,
    density_support,
    elementwise,
    inner_of,
    kind_of,
    known_support,
    period_of,
    support_name,
    support_of,
)
from pyro_vae.runtime.random_state import preserved_state

CIRCLE = "the circle [-pi, pi]"
# Guides to suggest for a prior's support, by `support_name`.
GUIDES_ON = {
    "Real": "Normal or MultivariateNormal",
    "GreaterThan": "LogNormal or Gamma",
    "Interval": "Beta, or a Normal through a SigmoidTransform",
    "Simplex": "Dirichlet, or a Normal through a StickBreakingTransform",
    "Sphere": "ProjectedNormal, or a von Mises-Fisher distribution",
    CIRCLE: "VonMises",
}
# Supports with fewer dimensions than their arrays. Densities on them cannot be compared with
# densities on the surrounding space.
SURFACES = ("Simplex", "Sphere")
# Distributions with parameters `probs` and `logits`, and those of them with two outcomes.
Binary: TypeAlias = Bernoulli | Binomial | Geometric | NegativeBinomial
Parametric: TypeAlias = Binary | Categorical | OneHotCategorical | Multinomial
ROUNDED = 1e-3  # relative difference that the rounding of a transform and its inverse explains
NUM_SAMPLES = 16  # of a discrete guide, which are compared with the prior's support


def check_latent_support(
    name: str,
    prior: Distribution,
    posterior_site: Node,
    *,
    weighted: bool = True,
    zero_outside: bool = False,
) -> None:
    """Check that the guide of a latent has the prior's support, or a part of it.

    Args:
        name: Name of the latent.
        prior: Distribution of the latent in the model.
        posterior_site: Site of the latent in the guide's trace.
        weighted: Whether log densities of the guide are used. If not, its samples are only starting
            points, and those of an angle may be on the whole real line.
        zero_outside: Whether the guide may sample outside the prior's support if the prior returns
            a density of zero there.

    Raises:
        PairError: If the guide samples outside the prior's support, or the two densities are of
            different kinds (discrete and continuous, or on a surface and on a volume).
    """
    posterior, value = posterior_site["fn"], posterior_site["value"]
    if not value.isfinite().all():
        return  # in no support; other checks name the cause, such as NaN data
    if known_support(prior) is None:
        return
    is_point = isinstance(posterior, Delta)  # a MAP guide, supported at its value
    support = density_support(prior) if weighted and not is_point else support_of(prior)
    here, there = elementwise(support), elementwise(density_support(posterior))
    fits, points = True, [value]
    if not is_point and known_support(posterior) is not None:
        surfaces = any(support_name(side) in SURFACES for side in (here, there))
        fits = here.is_discrete == there.is_discrete
        fits = fits and (support_name(here) == support_name(there) or not surfaces)
        if fits and not (_is_real(here) and _is_codomain(prior)):
            points += _spread_points(posterior, value)
    if not fits or any(_is_outside(prior, support, point, zero_outside) for point in points):
        raise PairError(f"{differing(name, prior, posterior)}: {advice_for(prior)}")


def covers(posterior: Distribution, prior: Distribution) -> bool:
    """Return whether the support of a guide is known to contain that of the prior."""
    support = density_support(posterior)
    known = _is_real(support) or _same(support, density_support(prior))
    return known and _is_codomain(posterior) and not has_zeros(posterior)


def may_vary(distribution: Distribution) -> bool:
    """Return whether the values that a distribution takes may be a function of its parameters."""
    parametric = isinstance(inner_of(distribution), Parametric)
    return parametric or bool(bounds_of(support_of(distribution))) or not _is_codomain(distribution)


def listed_values(distribution: Distribution) -> Tensor:
    """Return all values of an entry, shape `(values, *event)`; none if they cannot be listed."""
    inner = inner_of(distribution)
    try:
        values = inner.enumerate_support(expand=False)
    except NotImplementedError:
        return torch.empty(0)
    return values.reshape(len(values), *inner.event_shape)


def _is_real(support: Constraint) -> bool:
    return isinstance(elementwise(support), type(constraints.real))


def _flat(transforms: Sequence[Transform]) -> list[Transform]:
    """Return transforms with the parts of composed ones in their place."""
    parts = [t.parts if isinstance(t, ComposeTransform) else [t] for t in transforms]
    return [part for some in parts for part in some]


def _same(one: Constraint, other: Constraint) -> bool:
    ours, theirs = (vars(elementwise(support)) for support in (one, other))
    if type(elementwise(one)) is not type(elementwise(other)) or ours.keys() != theirs.keys():
        return False
    pairs = [(torch.as_tensor(value), torch.as_tensor(theirs[n])) for n, value in ours.items()]
    return all(bool((left == right).all()) for left, right in pairs)


def contained(distribution: Distribution, value: Tensor) -> Tensor:
    """Return a mask of the values that a distribution takes, true if its support is not known.

    Values with a probability of zero are not among them.
    """
    inside = _inside(distribution, density_support(distribution), value)
    return inside & _events(~_impossible(inner_of(distribution), value), inside.dim())


def _impossible(entry: Distribution, value: Tensor) -> Tensor:
    """Return a mask of the values with a probability of zero, for known kinds of distributions."""
    if not isinstance(entry, Parametric):
        return torch.zeros((), dtype=torch.bool, device=value.device)
    if not isinstance(entry, Binary):
        zero = _is_zero(entry)
        if not isinstance(entry, Categorical):
            return (zero & (value > 0)).any(-1)
        index = value.long().clamp(0, zero.shape[-1] - 1).unsqueeze(-1)
        return zero.expand(*value.shape, -1).gather(-1, index).squeeze(-1)
    never, always = _is_zero(entry), _is_zero(entry, of_failure=True)
    if isinstance(entry, Geometric):  # counts failures
        return always & (value > 0)
    failed = value < getattr(entry, "total_count", 1)
    if isinstance(entry, NegativeBinomial):
        failed = torch.zeros_like(failed)
    return (never & (value > 0)) | (always & failed)


def has_zeros(distribution: Distribution) -> bool:
    """Return whether a discrete distribution gives values in its support a probability of zero."""
    entry = inner_of(distribution)
    if not isinstance(entry, Parametric):
        return False
    binary = isinstance(entry, Binary)
    return bool(_is_zero(entry).any() or (binary and _is_zero(entry, of_failure=True).any()))


def _is_zero(entry: Parametric, of_failure: bool = False) -> Tensor:
    """Return a mask of the probabilities that are given as zero.

    torch clamps their logits. Finite logits give the value a density, even if the probability of
    the value is rounded to zero.
    """
    probs, logits = entry.probs, entry.logits
    rounded = logits_to_probs(logits, is_binary=isinstance(entry, Binary))
    at = 1.0 if of_failure else 0.0
    return (probs == at) & ((rounded != at) | logits.isinf())


def _inside(distribution: Distribution, support: Constraint, value: Tensor) -> Tensor:
    """Return a mask of the values in the support of a distribution, of its batch shape."""
    inside, inner = support.check(value), inner_of(distribution)
    if not isinstance(inner, TransformedDistribution) or _is_codomain(distribution):
        return inside
    base = image = value
    with contextlib.suppress(NotImplementedError, KeyError):  # of a transform without an inverse
        for transform in reversed(inner.transforms):
            base = transform.inv(base)
        image = base
        for transform in inner.transforms:
            image = transform(image)
    # The inverse of a value that is no image is that of the nearest one.
    same = torch.isclose(image, value, rtol=ROUNDED, atol=ROUNDED)
    # Inverses are rounded, at the edge of the base's support to values outside.
    source, near = inner.base_dist, ROUNDED * (1 + base.abs())
    support = density_support(source)
    starts = [_inside(source, support, start) for start in (base, base - near, base + near)]
    start = torch.stack(starts).any(0)
    return inside & _events(same, inside.dim()) & _events(start, inside.dim())


def _events(mask: Tensor, dim: int) -> Tensor:
    """Return whether a mask is true for all of an event, of `dim` dimensions."""
    return mask.flatten(dim).all(-1) if mask.dim() > dim else mask


def _is_codomain(distribution: Distribution) -> bool:
    """Return whether the support of a distribution is all of its `support`.

    That of a transformed distribution is the codomain of the last transform. It is all of it if the
    other transforms, and the base, have values on all real numbers.
    """
    inner = inner_of(distribution)
    if not isinstance(inner, TransformedDistribution) or not inner.transforms:
        return True
    others = [part.codomain for part in _flat(inner.transforms)[:-1]]
    return all(map(_is_real, [density_support(inner.base_dist), *others]))


def differing(name: str, prior: Distribution, posterior: Distribution) -> str:
    """Return the supports of a latent in model and guide in words."""
    here, there = map(_name, (prior, posterior))
    return (
        f"latent {name!r} lies on {here} in the model's prior, a {kind_of(prior)}, but the "
        f"guide's {kind_of(posterior)} has support {there}"
    )


def _name(distribution: Distribution) -> str:
    return CIRCLE if period_of(distribution) else support_name(support_of(distribution))


def advice_for(prior: Distribution) -> str:
    """Return which guides have the support of a prior."""
    name = _name(prior)
    advice = GUIDES_ON.get(name if name == CIRCLE else name.split("(")[0].removesuffix("Eq"))
    return f"give the guide a distribution on {name}" + (f", such as {advice}" if advice else "")


def _is_outside(
    prior: Distribution, support: Constraint, point: Tensor, zero_outside: bool
) -> bool:
    """Return whether a point is outside the support of a prior, and matters."""
    outside = ~_inside(prior, support, point)
    if not (zero_outside and outside.any()):
        return bool(outside.any())
    return bool((outside & (prior.log_prob(point) != -math.inf)).any())


def _spread_points(distribution: Distribution, like: Tensor) -> list[Tensor]:
    """Return widely spread points of the support of a distribution, samples if it is discrete.

    Those of a transformed distribution are the images of points of its base: `support` is the
    codomain of the last transform alone, the real line for a shifted and scaled interval.
    """
    inner = inner_of(distribution)
    if isinstance(inner, TransformedDistribution):
        with preserved_state():
            points = _spread_points(inner.base_dist, inner.base_dist.sample())
        for transform in inner.transforms:
            points = [transform(point) for point in points]
        return points
    support = elementwise(density_support(distribution))
    if support.is_discrete:
        with preserved_state():
            return [distribution.sample() for _ in range(NUM_SAMPLES)]
    try:
        unconstrained = transform_to(support).inv(like)
        return [transform_to(support)(unconstrained + shift) for shift in (-5.0, 0.0, 5.0)]
    except NotImplementedError:
        return []
