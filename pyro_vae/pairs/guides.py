"""The guides that Pyro generates, and the auxiliary variables and point masses of guides."""

import math
from collections.abc import Callable, Mapping

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import site_is_factor
from torch import Tensor
from torch.distributions import Distribution, biject_to

from pyro_vae.pairs.latents import (
    check_masks,
    check_names,
    check_not_enumerated,
    check_not_observed,
)
from pyro_vae.pairs.pair import PairError, Program
from pyro_vae.pairs.sites import Node, Sites, is_delta, point_in, sample_sites, values_of
from pyro_vae.pairs.supports import density_support, elementwise

MOST_ELEMENTS = 256  # of auxiliary variables, for which a Jacobian is computed row by row
TOLERANCE = 1e-3  # of its log determinant, relative to 1 and to its absolute value


def is_automatic(program: Program) -> bool:
    """Return whether the first call of a program creates its parameters: an `AutoGuide`."""
    return isinstance(poutine.unwrap(program), AutoGuide | GuideMessenger)


def without_observations(guide: Program) -> Program:
    """Return a guide that has no observed sites.

    A `GuideMessenger`, such as `AutoNormalMessenger`, runs the model and has its observed sites.
    Handlers around the guide would count their log densities as a part of log q(z|x).
    """
    if isinstance(poutine.unwrap(guide), GuideMessenger):
        return poutine.block(guide, hide_fn=_is_observed)
    return guide


def model_of(program: Program) -> Program:
    """Return the model of a guide that Pyro generates, and other programs unchanged."""
    inner = poutine.unwrap(program)
    return inner.model if isinstance(inner, AutoGuide | GuideMessenger) else program


def check_latents(
    traces: tuple[poutine.Trace, ...],
    run_guide: Callable[[dict[str, Tensor]], poutine.Trace],
) -> None:
    """Check that the guide samples the latents of the model, so that samples have weights.

    Args:
        traces: Traces of the guide and of the model.
        run_guide: Function that traces the guide with given values.

    Raises:
        PairError: If it does not.
    """
    guide, model = (dict(sample_sites(trace)) for trace in traces)
    check_not_enumerated(model, guide)
    check_names(model, guide)
    check_not_observed(model, guide)
    check_masks(model, guide)
    check_auxiliary(model, traces[0], lambda values: dict(sample_sites(run_guide(values))))


def check_auxiliary(
    model: Mapping[str, Node],
    trace: poutine.Trace,
    rerun: Callable[[dict[str, Tensor]], Mapping[str, Node]],
) -> None:
    """Check that the auxiliary variables of a guide are functions of its latents.

    Let u be auxiliary. If z is random given u, log q(z|x) is an integral over u. The log weight
    log p(x, z) - log q(u, z|x) is then too large by up to the entropy of u. If the guide computes z
    from u (`Delta` sites, as in `AutoMultivariateNormal`), u must not have more elements than the z
    that change with it, and log densities of `Delta` sites and factors must be -log |det dz/du|.

    Args:
        model: Latent sites of the model by name.
        trace: Trace of the guide.
        rerun: Function that runs the guide with given values and returns its sites.

    Raises:
        PairError: If an auxiliary variable is not in the model and the latents do not determine it,
            or the guide has another log density than that of the latents.
    """
    guide = dict(sample_sites(trace))
    auxiliary = [n for n, node in guide.items() if n not in model and not node["is_observed"]]
    if not auxiliary:
        return
    computed = [n for n, node in guide.items() if is_delta(node["fn"]) and n in model]
    given = {n: value for n, value in values_of(trace).items() if n not in computed}
    others = {name: guide[name]["fn"].sample() for name in auxiliary}
    moved = rerun({**given, **others})
    changed = {
        name: int((node["value"] != moved[name]["value"]).sum()) for name, node in guide.items()
    }
    if sum(changed[name] for name in auxiliary) > sum(changed[name] for name in computed):
        names = ", ".join(map(repr, auxiliary))
        raise PairError(
            f"the guide has the auxiliary variable {names}, which the model does not have and the "
            "latents do not determine. log q(z|x) is then unknown, and bounds are too large: "
            f"sample {names} in the model too, under that name and given z, or leave it out of the "
            "guide. An auxiliary variable without a site in the model is possible only if the "
            "guide computes the latents from it, one to one, in Delta sites"
        )
    continuous = [
        name
        for name in auxiliary
        if not elementwise(density_support(guide[name]["fn"])).is_discrete
    ]
    if continuous == auxiliary:
        _check_jacobian(auxiliary, computed, given, rerun)


def _check_jacobian(
    auxiliary: list[str],
    computed: list[str],
    given: Mapping[str, Tensor],
    rerun: Callable[[dict[str, Tensor]], Mapping[str, Node]],
) -> None:
    """Check that a guide has the log density of latents that it computes from auxiliary variables.

    Nothing is checked if the Jacobian is not square, as on the simplex, large, or not known, as for
    values that are detached.

    Args:
        auxiliary: Names of the auxiliary variables u.
        computed: Names of the latents z.
        given: Values of all sites but the latents z.
        rerun: Function that runs the guide with given values and returns its sites.

    Raises:
        PairError: If the log densities of z and of the factors are not -log |det dz/du|.
    """
    with torch.enable_grad():
        leaves = {name: given[name].detach().clone().requires_grad_() for name in auxiliary}
        sites = rerun({**given, **leaves})
        z = torch.cat([sites[name]["value"].reshape(-1) for name in computed])
        size = sum(leaf.numel() for leaf in leaves.values())
        if not z.requires_grad or len(z) != size or size > MOST_ELEMENTS:
            return
        u = list(leaves.values())
        rows = [
            torch.autograd.grad(entry, u, retain_graph=True, materialize_grads=True) for entry in z
        ]
    jacobian = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
    if not jacobian.any(1).all():
        return
    expected = -torch.linalg.slogdet(jacobian.double()).logabsdet.item()
    nodes = [node for name, node in sites.items() if name in computed or site_is_factor(node)]
    found = sum(node["fn"].log_prob(node["value"]).sum().item() for node in nodes)
    if not abs(found - expected) <= TOLERANCE * (1 + abs(expected)):
        raise PairError(
            f"the guide computes {', '.join(map(repr, computed))} from the auxiliary variable "
            f"{', '.join(map(repr, auxiliary))} with -log |det dz/du| = {expected:.4g} for some "
            f"data, but adds {found:.4g} to its log density, so that bounds are too large or too "
            "small: pass the former as log_density= of the Delta, or to "
            "pyro.factor(..., has_rsample=True)"
        )


def point_masses(guide: Sites, latents: Sites) -> set[str]:
    """Return the latents that are point masses in the guide, with fixed or random values.

    The log density of a `Delta` is 0 and no density, with two exceptions: the guide gives it
    (`log_density=`), or computes its `Delta` sites from as many auxiliary variables, one to one.

    Args:
        guide: Sites of the guide with two samples.
        latents: Latents of the model at these samples.
    """
    found = {name: point_in(guide[name].distribution) for name in latents}
    points = {name: point for name, point in found.items() if point is not None}
    fixed = {name for name in points if guide[name].value[0].equal(guide[name].value[1])}
    auxiliary = [s for n, s in guide.items() if n not in latents and not s.observed]
    dims = sum(_dim(guide[name].value[0].shape, latents[name].distribution) for name in points)
    if fixed or dims == sum(site.value[0].numel() for site in auxiliary):
        return fixed
    return {name for name, point in points.items() if not point.log_density.any()}


def penalties(guide: Sites) -> set[str]:
    """Return the factors of a guide that are no part of a density.

    A factor can be the Jacobian or the density of a `Delta` site. Other sites have their densities,
    and with a factor their product does not integrate to one.
    """
    if any(site.is_delta for site in guide.values()):
        return set()
    return {name for name, site in guide.items() if site.is_factor and site.log_prob.any()}


def _dim(shape: torch.Size, prior: Distribution) -> int:
    """Return the number of unconstrained elements of a latent of this shape."""
    try:
        return math.prod(biject_to(density_support(prior)).inverse_shape(shape))
    except NotImplementedError:  # of discrete latents
        return math.prod(shape)


def _is_observed(msg: Node) -> bool:
    return msg["type"] == "sample" and msg["is_observed"]
