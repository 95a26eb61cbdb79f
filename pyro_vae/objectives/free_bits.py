"""Free bits (Kingma et al. 2016): the KL divergence counts from a threshold on."""

import math
from typing import Any, Literal

from pyro import poutine
from pyro.distributions import Independent
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.objectives.reparameterized import (
    Reparameterized,
    Traces,
    latents,
)
from pyro_vae.objectives.sticking_the_landing import _elbo, _plates_over_data
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.plates import frame_of


class FreeBits(Reparameterized):
    """The ELBO with the KL divergence of each group of latents counted from `free_nats` on.

    log p(x|z) - sum_j max(free_nats, KL_j), with KL_j averaged over the minibatch before the
    maximum: Kingma et al. (2016), "Improving Variational Inference with Inverse Autoregressive
    Flow", on free bits. A group below the threshold is not pressed further towards its prior. It
    is a bound, below the ELBO by what is counted too much. KL_j is estimated from the draws, which
    serves any prior and guide.

    Args:
        free_nats: nats for each group and datum.
        groups: `"sites"`, one group for each latent site, or `"dimensions"`, one for each of its
            dimensions, where prior and guide are independent over them (`.to_event`).
        num_particles: draws that KL_j is averaged over, besides the minibatch.
        kwargs: as in `Reparameterized`.

    Raises:
        PairError: for groups of dimensions that a prior or a guide does not treat independently.
    """

    def __init__(
        self,
        free_nats: float,
        groups: Literal["sites", "dimensions"] = "sites",
        num_particles: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_particles, **kwargs)
        if not 0 <= free_nats < math.inf:
            raise ValueError(f"free_nats must be finite and at least 0, got {free_nats!r}")
        if groups not in ("sites", "dimensions"):
            raise ValueError(f"groups must be 'sites' or 'dimensions', got {groups!r}")
        self.free_nats, self.groups = free_nats, groups

    def _bound(self, traces: Traces, args: tuple[Any, ...]) -> Tensor:
        bound = _elbo(traces) / self.num_particles
        plates = _plates_over_data(traces)
        for name, node in latents(traces[0][0]):
            kl = sum(self._kl(name, model, guide) for model, guide in traces) / self.num_particles
            frame = frame_of(node, plates)
            # What the log densities of a site are weighted by, over all data of the minibatch.
            weight = node["scale"] * (1 if frame is None else frame.size)
            free = self.free_nats * weight
            bound = bound - (free - kl).clamp(min=0).sum()
        return bound

    def _kl(self, name: str, model: poutine.Trace, guide: poutine.Trace) -> Tensor:
        """Estimate a latent's KL divergence by its draws: `()`, or one for each dimension."""
        prior, posterior = model.nodes[name], guide.nodes[name]
        if self.groups == "sites":
            return (posterior["log_prob"] - prior["log_prob"]).sum()
        return _by_dimension(name, posterior) - _by_dimension(name, prior)


def _by_dimension(name: str, node: Any) -> Tensor:
    """Return a site's log density summed over its batch, for each dimension of the event."""
    fn, event_dim = node["fn"], node["fn"].event_dim
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if fn.event_dim:
        raise PairError(
            f"latent {name!r} has a {type(fn).__name__}, whose dimensions are not independent, so "
            "that they have no KL divergence each: use FreeBits(groups='sites')"
        )
    log_prob = fn.log_prob(node["value"])
    batch_shape = log_prob.shape[: log_prob.dim() - event_dim]
    log_prob = log_prob.reshape(*batch_shape, -1).movedim(-1, 0)
    return scale_and_mask(log_prob, node["scale"], node["mask"]).flatten(1).sum(1)
