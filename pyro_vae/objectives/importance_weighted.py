"""The importance-weighted bound (Burda et al. 2015), per datum."""

import math
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.objectives.reparameterized import (
    PathDerivative,
    Program,
    Reparameterized,
    Traces,
    along_draws,
    sample_sites,
)
from pyro_vae.objectives.sticking_the_landing import _plates_over_data
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.plates import frame_of


class ImportanceWeighted(PathDerivative):
    """log 1/K sum_k w_k for each datum: the importance-weighted bound.

    Burda, Grosse & Salakhutdinov (2015), eq. 8: a bound that rises from the ELBO (K = 1) to
    log p(x). The logarithm is taken datum by datum, and the scale of a minibatch stands outside
    it, so that the bound holds under subsampling: `pyro.infer.RenyiELBO` scales inside, and its
    value there can pass log p(x). Every site is in the plate over the data. `fit` finds it;
    otherwise it is the one called `"data"`, or the only one that all observed sites share.

    Args:
        num_particles: K.
        doubly_reparameterized: estimate the guide's gradient as in Tucker et al. (2019), "Doubly
            Reparameterized Gradient Estimators": sum_k (w_k / sum w)^2 d log w_k/d z_k d z_k/d phi.
            It has the same mean, and a signal that does not fade with K.
        kwargs: as in `Reparameterized`.

    Raises:
        PairError: when a site stands outside the plate over the data, when several plates may be
            that one, or when observed sites carry different scales.
    """

    def __init__(
        self, num_particles: int, *, doubly_reparameterized: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(num_particles, **kwargs)
        self.doubly_reparameterized = doubly_reparameterized
        self.is_elbo = num_particles == 1

    def _get_trace(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[poutine.Trace, poutine.Trace]:
        kind = PathDerivative if self.doubly_reparameterized else Reparameterized
        return kind._get_trace(self, model, guide, args, kwargs)

    def _bound(self, traces: Traces, args: tuple[Any, ...]) -> Tensor:
        log_p, log_q, scale = self._per_datum(traces, args)
        return self._log_mean(log_p - log_q, scale)

    def _surrogate(self, traces: Traces, args: tuple[Any, ...]) -> Tensor:
        log_p, log_q, scale = self._per_datum(traces, args)
        if not self.doubly_reparameterized:
            return self._log_mean(log_p - log_q, scale)
        log_weights = log_p - log_q
        normalized = log_weights.detach().softmax(dim=0)
        path = along_draws((scale * normalized.square() * log_weights).sum(), traces)
        return self._log_mean(log_p - log_q.detach(), scale) + path

    def _log_mean(self, log_weights: Tensor, scale: Any) -> Tensor:
        bound = log_weights.logsumexp(dim=0) - math.log(self.num_particles)
        return (scale * bound).sum()

    def _per_datum(self, traces: Traces, args: tuple[Any, ...]) -> tuple[Tensor, Tensor, Any]:
        """Return log p(x,z) and log q(z|x), unscaled, each `(K, M)`, and the scale of a datum."""
        scale = _scale_of_observations(traces[0][0])
        plates = _plates_over_data(traces)
        log_p, log_q = (
            torch.cat([self._sum(trace, plates) for trace in half]) / scale
            for half in zip(*traces, strict=True)
        )
        return log_p, log_q, scale

    def _sum(self, trace: poutine.Trace, plates: tuple[str, ...]) -> Tensor:
        terms = [self._arrange(name, node, plates) for name, node in sample_sites(trace)]
        return torch.stack(terms).sum(dim=0)

    def _arrange(self, name: str, node: Any, plates: tuple[str, ...]) -> Tensor:
        """Sum a site's log density over all but particles and data: `(K, M)` or `(1, M)`."""
        frame = frame_of(node, plates)
        if frame is None or not frame.vectorized:
            raise PairError(
                f"site {name!r} stands outside the plate over the data, where the "
                "importance-weighted bound has no meaning per datum: put it into "
                "pyro.plate('data', len(x)), or train with Trace_ELBO"
            )
        particles = -self.max_plate_nesting if self.vectorize_particles else None
        log_prob = node["log_prob"]
        others = [dim for dim in range(-log_prob.dim(), 0) if dim not in (frame.dim, particles)]
        log_prob = log_prob.sum(others) if others else log_prob
        return log_prob if self.vectorize_particles else log_prob.unsqueeze(0)


def _scale_of_observations(model: poutine.Trace) -> Any:
    scales = {name: model.nodes[name]["scale"] for name in model.observation_nodes}
    if not scales:
        raise PairError("the model observes nothing: pass x as obs= of a pyro.sample")
    first, *others = scales.values()
    if any(scale is not first and scale != first for scale in others):
        raise PairError(
            f"the observed sites carry the scales {scales}; the importance-weighted bound has one "
            "scale for a datum, outside the logarithm: leave poutine.scale out"
        )
    return first
