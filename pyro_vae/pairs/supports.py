"""Compare the supports of distributions: a guide's with its prior's, a likelihood's with x."""

import torch
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import Distribution, transform_to
from torch.distributions.constraints import Constraint

from pyro_vae.distributions.independent import unwrap_independent
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.sites import Node

# Guides to suggest for a prior's support, by `support_name`.
GUIDES_ON = {
    "Real": "Normal or MultivariateNormal",
    "GreaterThan": "LogNormal or Gamma",
    "Interval": "Beta, or a Normal through a SigmoidTransform",
    "Simplex": "Dirichlet, or a Normal through a StickBreakingTransform",
    "Sphere": "ProjectedNormal, or a von Mises-Fisher distribution",
}
# Supports with fewer dimensions than their arrays. Densities on them cannot be compared with
# densities on the surrounding space.
SURFACES = ("Simplex", "Sphere")


def support_name(support: Constraint) -> str:
    """Return the name of a support, without the shape of its events."""
    return str(_elementwise(support)).removesuffix("()")


def _elementwise(support: Constraint) -> Constraint:
    while hasattr(support, "base_constraint"):  # independent events, mixtures
        support = support.base_constraint
    return support


def _support_of(distribution: Distribution) -> Constraint:
    support = distribution.support
    assert support is not None
    return support


def kind_of(distribution: Distribution) -> str:
    """Return the name of the distribution's class, inside `.to_event()` and `.expand()`."""
    return type(unwrap_independent(distribution, ExpandedDistribution)).__name__


def check_latent_support(name: str, prior: Distribution, posterior_site: Node) -> None:
    """Check that the guide of a latent has the prior's support, or a part of it.

    Args:
        name: Name of the latent.
        prior: Distribution of the latent in the model.
        posterior_site: Site of the latent in the guide's trace.

    Raises:
        PairError: If the guide samples outside the prior's support, or the two densities are of
            different kinds (discrete and continuous, or on a surface and on a volume).
    """
    posterior, value = posterior_site["fn"], posterior_site["value"]
    if not value.isfinite().all():
        return  # in no support; other checks name the cause, such as NaN data
    here, there = _elementwise(_support_of(prior)), _elementwise(_support_of(posterior))
    names = support_name(here), support_name(there)
    is_point = isinstance(posterior, Delta)  # a MAP guide, supported at its value
    fits = bool(_support_of(prior).check(value).all())
    if not is_point:
        surfaces = any(name in SURFACES for name in names)
        fits = fits and here.is_discrete == there.is_discrete
        fits = fits and (names[0] == names[1] or not surfaces)
        fits = fits and _contains(_support_of(prior), _support_of(posterior), value)
    if not fits:
        advice = GUIDES_ON.get(names[0].split("(")[0].removesuffix("Eq"))
        raise PairError(
            f"latent {name!r} lies on {names[0]} in the model's prior, a {kind_of(prior)}, but the "
            f"guide's {kind_of(posterior)} has support {names[1]}: give the guide a distribution "
            f"on {names[0]}" + (f", such as {advice}" if advice else "")
        )


def _contains(outer: Constraint, inner: Constraint, like: Tensor) -> bool:
    """Return whether widely spread points of the support `inner` all lie in `outer`."""
    if inner.is_discrete:
        return True  # the sample itself has been checked
    try:
        unconstrained = transform_to(inner).inv(like)
        points = [transform_to(inner)(unconstrained + shift) for shift in (-5.0, 0.0, 5.0)]
    except NotImplementedError:
        return True
    return all(bool(outer.check(point).all()) for point in points)


def check_support(
    distribution: Distribution,
    value: Tensor,
    name: str = "x",
    mask: Tensor | bool | None = None,
) -> None:
    """Check that an observation is in its distribution's support.

    Args:
        distribution: Distribution of the observation.
        value: The observation.
        name: Name of the site.
        mask: Mask of the distribution's batch shape. Values that it masks out are not checked.

    Raises:
        PairError: If a value is outside the support. The message suggests a change.
    """
    inside = _support_of(distribution).check(value)
    if mask is not None:
        inside = inside | ~torch.as_tensor(mask, device=value.device)
    if inside.all():
        return
    support = support_name(_support_of(distribution))
    index = int((~inside.reshape(len(value), -1).all(dim=1)).nonzero()[0, 0])
    low, high = value.min().item(), value.max().item()
    if torch.isnan(value).any():
        fix = "replace or drop the NaN entries, or wrap the likelihood in likelihoods.Missing"
    elif support == "Boolean" and low >= 0 and high <= 1:
        fix = (
            "binarize them (binarize='dynamic', 'static' or 'threshold' in pv.data), or use a "
            "likelihood for gray values such as ContinuousBernoulli"
        )
    elif low >= 0 and high > 1:
        fix = "scale bytes 0..255 to 0..1 by x / 255, or choose a likelihood with this support"
    else:
        fix = "rescale x, or choose a likelihood with this support"
    raise PairError(
        f"observation {name!r} holds values in [{low:g}, {high:g}] (first at datum {index}), "
        f"outside the likelihood's support {support}: {fix}"
    )
