"""The importance-weighted bound (Burda et al. 2015), per datum."""

import math

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.arguments import Count, checked
from pyro_vae.objectives.reparameterized import (
    Args,
    KwArgs,
    PathDerivative,
    Reparameterized,
    Traces,
    along_draws,
)
from pyro_vae.objectives.sticking_the_landing import _plates_over_data
from pyro_vae.pairs.objectives import check_whole_plates
from pyro_vae.pairs.pair import PairError, Program
from pyro_vae.pairs.plates import frame_of
from pyro_vae.pairs.sites import Node, observed_sites, sample_sites


class ImportanceWeighted(PathDerivative):
    """The importance-weighted bound, log 1/K sum_k w_k for each datum.

    Burda, Grosse & Salakhutdinov (2015), eq. 8. The bound increases from the ELBO (K = 1) to
    log p(x). The logarithm is taken per datum, and the scale of a minibatch is applied outside it,
    so the bound holds under subsampling. `pyro.infer.RenyiELBO` scales inside the logarithm, and
    its value on a minibatch can exceed log p(x).

    Every site must be in the plate over the data. `fit` finds this plate. Under other inference
    classes it is the plate `"data"`, or the only plate that all observed sites share.

    Args:
        num_particles: K, the number of samples of the latents per datum.
        doubly_reparameterized: Whether to use the gradient estimator of Tucker et al. (2019),
            "Doubly Reparameterized Gradient Estimators", for the guide:
            sum_k (w_k / sum w)^2 d log w_k/d z_k d z_k/d phi. Its mean is the same, and its
            signal-to-noise ratio does not decrease with K.
        vectorize_particles: Whether to sample in one more plate on the left. Otherwise the programs
            run K times, for networks that do not accept another dimension.
        max_plate_nesting: Depth of the programs' plates. By default they run once to find it.

    Raises:
        ValueError: If num_particles is not a whole number of at least 1.
        PairError: If a site is outside the plate over the data, if several plates may be that
            plate, if another plate is subsampled, or if observed sites have different scales.
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
        >>> objective = pv.objectives.ImportanceWeighted(num_particles=5)
        >>> objective.differentiable_loss(vae.model, vae.guide, x).shape
        torch.Size([])
        >>> fit = pv.fit(vae, x, objective=objective, epochs=1)
        >>> "train_objective" in fit.history[0]
        True

    See also: `StickingTheLanding`; `evaluate`, which estimates log p(x) with many samples.
    """

    @checked
    def __init__(
        self,
        num_particles: Count,
        *,
        doubly_reparameterized: bool = False,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
    ) -> None:
        super().__init__(
            num_particles,
            vectorize_particles=vectorize_particles,
            max_plate_nesting=max_plate_nesting,
        )
        self.doubly_reparameterized = doubly_reparameterized
        self.is_elbo = self.is_linear = num_particles == 1

    def _get_trace(
        self, model: Program, guide: Program, args: Args, kwargs: KwArgs
    ) -> tuple[poutine.Trace, poutine.Trace]:
        kind = PathDerivative if self.doubly_reparameterized else Reparameterized
        return kind._get_trace(self, model, guide, args, kwargs)

    def _bound(self, traces: Traces, args: Args) -> Tensor:
        log_p, log_q, scale = self._per_datum(traces, args)
        return self._log_mean(log_p - log_q, scale)

    def _surrogate(self, traces: Traces, args: Args) -> Tensor:
        log_p, log_q, scale = self._per_datum(traces, args)
        if not self.doubly_reparameterized:
            return self._log_mean(log_p - log_q, scale)
        log_weights = log_p - log_q
        normalized = log_weights.detach().softmax(dim=0)
        path = along_draws((scale * normalized.square() * log_weights).sum(), traces)
        return self._log_mean(log_p - log_q.detach(), scale) + path

    def _log_mean(self, log_weights: Tensor, scale: float | Tensor) -> Tensor:
        bound = log_weights.logsumexp(dim=0) - math.log(self.num_particles)
        return (scale * bound).sum()

    def _per_datum(self, traces: Traces, args: Args) -> tuple[Tensor, Tensor, float | Tensor]:
        """Return log p(x,z) and log q(z|x), unscaled, each `(K, M)`, and the scale per datum."""
        plates = _plates_over_data(traces)
        check_whole_plates(traces[0], plates, self)
        scale = _scale_of_observations(traces[0][0])
        log_p, log_q = (
            torch.cat([self._sum(trace, plates) for trace in half]) / scale
            for half in zip(*traces, strict=True)
        )
        return log_p, log_q, scale

    def _sum(self, trace: poutine.Trace, plates: tuple[str, ...]) -> Tensor:
        terms = [self._arrange(name, node, plates) for name, node in sample_sites(trace)]
        return torch.stack(terms).sum(dim=0)

    def _arrange(self, name: str, node: Node, plates: tuple[str, ...]) -> Tensor:
        """Sum a site's log density over all dimensions but particles and data.

        The shape is `(K, M)` if particles are vectorized, else `(1, M)`.
        """
        frame = frame_of(node, plates)
        if frame is None or not frame.vectorized:
            raise PairError(
                f"site {name!r} is outside the plate over the data, so the importance-weighted "
                "bound per datum is not defined: put it into pyro.plate('data', len(x)), or train "
                "with Trace_ELBO"
            )
        particles = -self.max_plate_nesting if self.vectorize_particles else None
        log_prob = node["log_prob"]
        others = [dim for dim in range(-log_prob.dim(), 0) if dim not in (frame.dim, particles)]
        log_prob = log_prob.sum(others) if others else log_prob
        return log_prob if self.vectorize_particles else log_prob.unsqueeze(0)


def _scale_of_observations(model: poutine.Trace) -> float | Tensor:
    scales = {name: node["scale"] for name, node in observed_sites(model).items()}
    first, *others = scales.values()
    if any(scale is not first and scale != first for scale in others):
        raise PairError(
            f"the observed sites have the scales {scales}; the importance-weighted bound needs one "
            "scale per datum, outside the logarithm: remove poutine.scale"
        )
    return first
