"""Compare the sites of a model with those of its guide."""

from collections.abc import Mapping

import torch
from pyro import poutine
from pyro.poutine.util import site_is_factor
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.pairs.latent_supports import check_latent_support
from pyro_vae.pairs.masks import element_mask
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.sites import (
    Node,
    is_computed,
    is_delta,
    is_deterministic,
    is_enumerated,
    values_of,
)
from pyro_vae.pairs.supports import bounds_of, support_of


def check_names(
    model: Mapping[str, Node], guide: Mapping[str, Node], *, complete: bool = True
) -> None:
    """Check that model and guide have the same latents.

    The guide may lack a latent that is enumerated in the model.

    Args:
        model: Sites of the model by name.
        guide: Sites of the guide by name.
        complete: Whether the model ran to its end, so that all its sites are known.

    Raises:
        PairError: If a latent is missing from the guide, or a site of the guide from the model.
    """
    for name, node in model.items():
        if not node["is_observed"] and name not in guide and not is_enumerated(node):
            raise PairError(
                f"the model draws the latent {name!r}, the guide does not: it would silently be "
                f"drawn from its prior. Sample {name!r} in the guide, or observe it in the model"
            )
    for name, node in guide.items():
        if complete and name not in model and not node["infer"].get("is_auxiliary"):
            raise PairError(
                f"the guide draws the latent {name!r}, the model does not: sample {name!r} in the "
                "model under that name. If the guide computes its latents from it, one to one, in "
                "Delta sites, mark it by infer={'is_auxiliary': True}"
            )


def check_not_observed(model: Mapping[str, Node], guide: Mapping[str, Node]) -> None:
    """Check that the guide does not observe the data of the model, as an inner messenger does.

    Raises:
        PairError: If a site with a value is observed in both.
    """
    for name, node in guide.items():
        both = node["is_observed"] and name in model and model[name]["is_observed"]
        if both and not site_is_factor(node):
            raise PairError(
                f"the guide observes {name!r}, which is data of the model, so log q(z|x) would "
                "contain its log density: leave it out of the guide. If the guide contains an "
                "AutoMessenger, hide it by poutine.block(messenger, hide=[...])"
            )


def check_not_enumerated(model: Mapping[str, Node], guide: Mapping[str, Node]) -> None:
    """Check that the guide samples every latent, so that samples have log weights.

    Raises:
        PairError: If a latent is enumerated in the model and missing from the guide.
    """
    for name, node in model.items():
        if not node["is_observed"] and name not in guide and is_enumerated(node):
            raise PairError(
                f"the latent {name!r} is enumerated in the model and absent from the guide, so "
                "samples have no log weights: sum it out in the model (a mixture distribution), or "
                f"sample {name!r} in the guide"
            )


def check_shapes(model: Mapping[str, Node], guide: Mapping[str, Node]) -> None:
    """Check the shapes of the latents that model and guide share.

    Raises:
        PairError: If an event shape or a batch shape differs.
    """
    for name, prior in model.items():
        if name in guide:
            _check_shape(name, prior["fn"], guide[name]["fn"])


def check_supports(
    model: Mapping[str, Node], guide: Mapping[str, Node], *, weighted: bool, alone: bool
) -> None:
    """Check the supports of the latents that model and guide share.

    Args:
        model: Sites of the model by name.
        guide: Sites of the guide by name.
        weighted: Whether log densities of the guide are used, as in `check_latent_support`.
        alone: Whether the model ran without the guide's samples. Supports with bounds that are
            tensors, which may depend on other latents, are then not checked.

    Raises:
        PairError: If a guide samples outside the support of its prior.
    """
    for name, prior in model.items():
        if name in guide and not (alone and bounds_of(support_of(prior["fn"]))):
            check_latent_support(name, prior["fn"], guide[name], weighted=weighted)


def check_masks(model: Mapping[str, Node], guide: Mapping[str, Node]) -> None:
    """Check that model and guide mask the same elements of each latent.

    The log density of an element that only one of them masks does not cancel.

    Raises:
        PairError: If the masks of a latent differ and it is not a point mass in the guide.
    """
    if any(is_computed(node) and not is_deterministic(node) for node in model.values()):
        return  # a `Reparam` such as `NeuTraReparam` moves log densities of latents to other sites
    computes = any(node["infer"].get("is_auxiliary") for node in guide.values())
    for name, prior in model.items():
        if name not in guide or (is_delta(guide[name]["fn"]) and not computes):
            continue
        if not _equal_masks(element_mask(prior), element_mask(guide[name])):
            raise PairError(
                f"latent {name!r} has different masks in model and guide, so that log p(x, z) and "
                "log q(z|x) are not of the same elements. Use the same poutine.mask in both. An "
                "AutoGuide has no mask: with obs_mask=, write a guide that masks "
                f"{name!r}, or condition on the observed elements alone by poutine.mask and obs="
            )


def _equal_masks(one: Tensor | None, other: Tensor | None) -> bool:
    one, other = (torch.tensor(True) if mask is None else mask for mask in (one, other))
    return bool((one == other.to(one.device)).all())


def _check_shape(name: str, prior: Distribution, posterior: Distribution) -> None:
    if prior.event_shape != posterior.event_shape:
        raise PairError(
            f"latent {name!r} has event shape {tuple(prior.event_shape)} in the model's prior and "
            f"{tuple(posterior.event_shape)} in the guide: give prior, decoder and guide the same "
            "latent size, and .to_event() the same dimensions"
        )
    if prior.batch_shape != posterior.batch_shape:
        raise PairError(
            f"latent {name!r} has batch shape {tuple(prior.batch_shape)} in the model and "
            f"{tuple(posterior.batch_shape)} in the guide: look for a missing .to_event() or plate"
        )


def check_samples(guide: poutine.Trace, x: Tensor) -> None:
    """Check that the latents of a trace of the guide on x are finite.

    Raises:
        PairError: If a latent is not finite.
    """
    for name, value in values_of(guide).items():
        if not torch.isfinite(value).all():
            if torch.isnan(x).any():
                fix = "x holds NaN entries: wrap the encoder in networks.WithMask"
            else:
                fix = "rescale x, or check the encoder's weights"
            raise PairError(f"the guide's draw of latent {name!r} is not finite: {fix}")
