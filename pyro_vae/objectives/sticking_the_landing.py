"""The ELBO with the path derivative gradient (Roeder et al. 2017)."""

import torch
from torch import Tensor

from pyro_vae.objectives.reparameterized import Args, PathDerivative, Traces, along_draws
from pyro_vae.pairs.plates import data_plates
from pyro_vae.pairs.sites import sample_sites


class StickingTheLanding(PathDerivative):
    """The ELBO, with a gradient that is zero for every sample if the guide is exact.

    The value is the ELBO, a lower bound of log p(x). The gradient is the path derivative alone, an
    unbiased estimate: Roeder, Wu & Duvenaud (2017), "Sticking the Landing".

    Args:
        num_particles: K, the number of samples of the latents per datum.
        vectorize_particles: Whether to sample in one more plate on the left. Otherwise the programs
            run K times, for networks that do not accept another dimension.
        max_plate_nesting: Depth of the programs' plates. By default they run once to find it.

    Raises:
        ValueError: If num_particles is not a whole number of at least 1.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [], 4)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(4, [], 4)),
        ... )
        >>> x = torch.ones(8, 4)
        >>> objective = pv.objectives.StickingTheLanding()
        >>> objective.differentiable_loss(vae.model, vae.guide, x).shape
        torch.Size([])
        >>> fit = pv.fit(vae, x, objective=objective, epochs=1)
        >>> "train_elbo" in fit.history[0]
        True

    See also: `ImportanceWeighted`; `pyro.infer.Trace_ELBO`, which keeps the score function.
    """

    is_elbo = True

    def _bound(self, traces: Traces, args: Args) -> Tensor:
        return _elbo(traces) / self.num_particles

    def _surrogate(self, traces: Traces, args: Args) -> Tensor:
        path = along_draws(self._bound(traces, args), traces)
        return _elbo(traces, fixed_guide=True) / self.num_particles + path


def _elbo(traces: Traces, fixed_guide: bool = False) -> Tensor:
    log_p, log_q = (
        torch.stack([torch.as_tensor(trace.log_prob_sum()) for trace in half]).sum()
        for half in zip(*traces, strict=True)
    )
    return log_p - (log_q.detach() if fixed_guide else log_q)


def _plates_over_data(traces: Traces) -> tuple[str, ...]:
    """Return the names of the plates over the data, from `PerDatum` or the model's trace."""
    model = traces[0][0]
    for _, node in sample_sites(model):
        if "_data_plates" in node["infer"]:
            return node["infer"]["_data_plates"]
    return data_plates([model])
