"""Masks of latents, by `poutine.mask` and `Distribution.mask`.

A masked element has the log density 0 in model and guide. This leaves it out of log p(x, z) and of
log weights, but is no density: its integral over the element is infinite.
"""

import functools

import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions import Independent as TorchIndependent

from pyro_vae.pairs.sites import Node


class IgnoreMasks(Messenger):
    """Run a program without the masks of its latents, so that every element has its density."""

    def _pyro_sample(self, msg: Message) -> None:
        if not msg["is_observed"]:
            site: Node = msg
            site["mask"], site["fn"] = None, _unmasked(site["fn"])


def _unmasked(distribution: Distribution) -> Distribution:
    """Return a distribution without masks, inside any wrappers."""
    if isinstance(distribution, MaskedDistribution):
        return _unmasked(distribution.base_dist)
    if not isinstance(distribution, TorchIndependent | ExpandedDistribution):
        return distribution
    base = _unmasked(distribution.base_dist)
    if base is distribution.base_dist:
        return distribution
    if isinstance(distribution, TorchIndependent):
        return Independent(base, distribution.reinterpreted_batch_ndims)
    return base.expand(distribution.batch_shape)


def element_mask(node: Node) -> Tensor | None:
    """Return a mask of the elements of a site that count, or None if it has no mask.

    Masks of its distribution are included. The mask broadcasts to the shape of the value.
    """
    fn, masks = node["fn"], []
    if node["mask"] is not None:
        masks.append(_of_elements(node["mask"], fn))
    while isinstance(fn, MaskedDistribution | TorchIndependent | ExpandedDistribution):
        if isinstance(fn, MaskedDistribution):
            masks.append(_of_elements(fn._mask, fn))
        fn = fn.base_dist
    return functools.reduce(torch.logical_and, masks) if masks else None


def _of_elements(mask: Tensor | bool, fn: Distribution) -> Tensor:
    return torch.as_tensor(mask)[(..., *[None] * len(fn.event_shape))]
