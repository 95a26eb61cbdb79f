"""The guides that Pyro generates, and the auxiliary variables and point masses of guides."""

import math
from collections.abc import Callable, Mapping

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.guide import GuideMessenger
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
from pyro_vae.pairs.supports import density_support


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
    that change with it.

    Args:
        model: Latent sites of the model by name.
        trace: Trace of the guide.
        rerun: Function that runs the guide with given values and returns its sites.

    Raises:
        PairError: If an auxiliary variable is not in the model and the latents do not determine it.
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


def _dim(shape: torch.Size, prior: Distribution) -> int:
    """Return the number of unconstrained elements of a latent of this shape."""
    try:
        return math.prod(biject_to(density_support(prior)).inverse_shape(shape))
    except NotImplementedError:  # of discrete latents
        return math.prod(shape)


def _is_observed(msg: Node) -> bool:
    return msg["type"] == "sample" and msg["is_observed"]
