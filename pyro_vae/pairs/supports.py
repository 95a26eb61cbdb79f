"""Where distributions have density: whether a guide draws where its prior lives, and x fits too."""

from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import transform_to

from pyro_vae.pairs.pair import PairError

# Guides for the supports that priors have, as `support_name` calls them.
GUIDES_ON = {
    "Real": "Normal or MultivariateNormal",
    "GreaterThan": "LogNormal or Gamma",
    "Interval": "Beta, or a Normal through a SigmoidTransform",
    "Simplex": "Dirichlet, or a Normal through a StickBreakingTransform",
    "Sphere": "ProjectedNormal, or a von Mises-Fisher distribution",
}
# Supports of fewer dimensions than the arrays that hold them: densities on them are not densities
# on the space around.
SURFACES = ("Simplex", "Sphere")


def support_name(support: Any) -> str:
    """Return the name of a support, whatever shape its events have."""
    return str(_elementwise(support)).removesuffix("()")


def _elementwise(support: Any) -> Any:
    while hasattr(support, "base_constraint"):  # independent events, mixtures
        support = support.base_constraint
    return support


def kind_of(distribution: Any) -> str:
    """Name a distribution by what is inside `.to_event()` and `.expand()`."""
    while type(distribution).__name__ in ("Independent", "ExpandedDistribution"):
        distribution = distribution.base_dist
    return type(distribution).__name__


def check_latent_support(name: str, prior: Any, posterior_site: Any) -> None:
    """Refuse a guide that draws where the prior has no density, or has one of another kind."""
    posterior, draw = posterior_site["fn"], posterior_site["value"]
    if not draw.isfinite().all():
        return  # in no support; data that are NaN, say, are better said of the data
    here, there = _elementwise(prior.support), _elementwise(posterior.support)
    names = support_name(here), support_name(there)
    is_point = isinstance(posterior, Delta)  # of a MAP guide, which is on whatever it is put
    fits = bool(prior.support.check(draw).all())
    if not is_point:
        surfaces = any(name in SURFACES for name in names)
        fits = fits and here.is_discrete == there.is_discrete
        fits = fits and (names[0] == names[1] or not surfaces)
        fits = fits and _contains(prior.support, posterior.support, draw)
    if not fits:
        advice = GUIDES_ON.get(names[0].split("(")[0].removesuffix("Eq"))
        raise PairError(
            f"latent {name!r} lies on {names[0]} in the model's prior, a {kind_of(prior)}, but the "
            f"guide's {kind_of(posterior)} draws from {names[1]}: give the guide a distribution on "
            f"{names[0]}" + (f", such as {advice}" if advice else "")
        )


def _contains(outer: Any, inner: Any, like: Tensor) -> bool:
    """Whether points far and wide in the support `inner` all lie in the support `outer`."""
    if inner.is_discrete:
        return True  # the draw itself has been checked
    try:
        unconstrained = transform_to(inner).inv(like)
        points = [transform_to(inner)(unconstrained + shift) for shift in (-5.0, 0.0, 5.0)]
    except NotImplementedError:
        return True
    return all(bool(outer.check(point).all()) for point in points)


def check_support(
    distribution: Any, value: Tensor, name: str = "x", mask: Tensor | bool | None = None
) -> None:
    """Raise `PairError`, saying what to do, where `value` is outside a distribution's support.

    Data that are masked out, by a mask of the distribution's batch shape, may be anything.
    """
    inside = distribution.support.check(value)
    if mask is not None:
        inside = inside | ~torch.as_tensor(mask, device=value.device)
    if inside.all():
        return
    support = support_name(distribution.support)
    index = int((~inside.reshape(len(value), -1).all(dim=1)).nonzero()[0, 0])
    low, high = value.min().item(), value.max().item()
    if torch.isnan(value).any():
        fix = "replace or drop the NaN entries, or wrap the likelihood in likelihoods.Missing"
    elif support == "Boolean" and low >= 0 and high <= 1:
        fix = (
            "binarize them (binarize='dynamic', 'static' or 'threshold' of the data sets), or use "
            "a likelihood for grey values such as ContinuousBernoulli"
        )
    elif low >= 0 and high > 1:
        fix = "scale bytes 0..255 to 0..1 by x / 255, or choose a likelihood with this support"
    else:
        fix = "rescale x, or choose a likelihood with this support"
    raise PairError(
        f"observation {name!r} holds values in [{low:g}, {high:g}] (first at datum {index}), "
        f"outside the likelihood's support {support}: {fix}"
    )
