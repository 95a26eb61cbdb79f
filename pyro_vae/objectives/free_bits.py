"""Free bits (Kingma et al. 2016): a lower limit of the KL divergence in the objective."""

import math
from typing import Literal

from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.arguments import AtLeastZero, Count, checked
from pyro_vae.distributions.independent import unwrap_independent
from pyro_vae.objectives.reparameterized import Args, Reparameterized, Traces
from pyro_vae.objectives.sticking_the_landing import _elbo, _plates_over_data
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.plates import frame_of
from pyro_vae.pairs.sites import Node, full_size_of, latent_sites, plate_scale


class FreeBits(Reparameterized):
    """The ELBO with a KL divergence of at least `free_nats` for each group of latents.

    log p(x|z) - sum_j max(free_nats, KL_j), with KL_j averaged over the minibatch before the
    maximum: free bits as in Kingma et al. (2016), "Improving Variational Inference with Inverse
    Autoregressive Flow". A group below the threshold gets no gradient towards its prior. The value
    is a lower bound of log p(x), at most the ELBO. KL_j is estimated from samples, so any prior and
    guide can be used.

    Args:
        free_nats: Threshold in nats per group and datum.
        groups: `"sites"` for one group per latent site, or `"dimensions"` for one group per
            dimension of a site. Prior and guide must then be independent over the dimensions
            (`.to_event`).
        num_particles: Number of samples per datum over which KL_j is averaged.
        vectorize_particles: Whether to sample in one more plate on the left. Otherwise the programs
            run `num_particles` times.
        max_plate_nesting: Depth of the programs' plates. By default they run once to find it.

    Raises:
        ValueError: If an argument is out of range.
        PairError: If groups are dimensions and a prior or a guide is not independent over them.
            Raised when the loss is computed.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [], 4)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(4, [], 4)),
        ... )
        >>> x = torch.ones(8, 4)
        >>> objective = pv.objectives.FreeBits(0.1, groups="dimensions")
        >>> objective.differentiable_loss(vae.model, vae.guide, x).shape
        torch.Size([])
        >>> fit = pv.fit(vae, x, objective=objective, epochs=1)
        >>> "train_objective" in fit.history[0]
        True

    See also: `Beta`, which scales the KL divergence; `collapse`, which finds unused latents.
    """

    @checked
    def __init__(
        self,
        free_nats: AtLeastZero,
        groups: Literal["sites", "dimensions"] = "sites",
        num_particles: Count = 1,
        *,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
    ) -> None:
        super().__init__(
            num_particles,
            vectorize_particles=vectorize_particles,
            max_plate_nesting=max_plate_nesting,
        )
        self.free_nats, self.groups = free_nats, groups

    def _bound(self, traces: Traces, args: Args) -> Tensor:
        bound = _elbo(traces) / self.num_particles
        plates = _plates_over_data(traces)
        for name, node in latent_sites(traces[0][0]):
            kl = sum(self._kl(name, model, guide) for model, guide in traces) / self.num_particles
            frame = frame_of(node, plates)
            # Total weight of the site's log densities over the minibatch, for whole other plates.
            weight = node["scale"] / plate_scale(node)
            weight = weight * (1 if frame is None else full_size_of(frame))
            free = self.free_nats * weight
            bound = bound - (free - kl).clamp(min=0).sum()
        return bound

    def _kl(self, name: str, model: poutine.Trace, guide: poutine.Trace) -> Tensor:
        """Estimate a latent's KL divergence from samples, shape `()` or `(num_dimensions,)`."""
        prior, posterior = model.nodes[name], guide.nodes[name]
        if self.groups == "sites":
            return (posterior["log_prob"] - prior["log_prob"]).sum()
        return _by_dimension(name, posterior) - _by_dimension(name, prior)


def _by_dimension(name: str, node: Node) -> Tensor:
    """Return a site's log density summed over its batch, for each dimension of the event."""
    fn, event_dim = unwrap_independent(node["fn"]), node["fn"].event_dim
    if fn.event_dim:
        raise PairError(
            f"the dimensions of latent {name!r} are not independent under its {type(fn).__name__}, "
            "so there is no KL divergence per dimension: use FreeBits(groups='sites')"
        )
    log_prob = fn.log_prob(node["value"])
    batch_shape = log_prob.shape[: log_prob.dim() - event_dim]
    log_prob = log_prob.reshape(*batch_shape, -1).movedim(-1, 0)
    return scale_and_mask(log_prob, node["scale"], node["mask"]).flatten(1).sum(1)
