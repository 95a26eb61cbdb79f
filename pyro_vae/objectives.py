"""Which bound is trained, and in which unit: every objective is in nats per datum.

Pyro's ELBOs sum over a minibatch. With N data, a minibatch of M estimates the whole bound without
bias when what belongs to a datum is scaled by N/M (Kingma & Welling 2013, eq. 8); divided by N, the
bound per datum, that is

    1/M sum over the minibatch of log p(x|z) + log p(z) - log q(z|x)    sites in the data's plate
    1/N (log p - log q)                                                 sites outside it (global)

so that the objective, its gradients, and with them learning rates and clipping thresholds, mean the
same whatever the batch size and the size of the data set. `PerDatum` does so.

Pyro's own objectives serve as they are: `Trace_ELBO`, the paper's estimator A (eq. 6), and
`TraceMeanField_ELBO`, its estimator B (eq. 7) with the KL divergence in closed form. Those here,
for reparameterized draws z_k of K particles and log weights log w = log p(x,z) - log q(z|x), are

    objective             value for one datum                  lower bound of log p(x)?
    StickingTheLanding    1/K sum_k log w_k                    yes, it is the ELBO
    ImportanceWeighted    log 1/K sum_k w_k                    yes, between the ELBO and log p(x)
    FreeBits              log p(x|z) - sum_j max(free, KL_j)   yes, below the ELBO
    Beta                  log p(x|z) + beta log p(z)/q(z|x)    for beta >= 1 only

Each is a `pyro.infer.ELBO`, which stock `pyro.infer.SVI` takes as well.
"""

import math
from typing import Any, Literal

import torch
from pyro import poutine
from pyro.distributions import Independent
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceTailAdaptive_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.annealing import Beta, Cyclic, Linear
from pyro_vae.pairs import PairError
from pyro_vae.pathwise import (
    PathDerivative,
    Program,
    Reparameterized,
    Traces,
    along_draws,
    latents,
    sample_sites,
)
from pyro_vae.plates import data_plates, data_plates_of, frame_of

__all__ = [
    "Beta",
    "Cyclic",
    "FreeBits",
    "ImportanceWeighted",
    "Linear",
    "PerDatum",
    "StickingTheLanding",
    "is_elbo",
    "per_datum",
]


class PerDatum(Messenger):
    """Scales the log densities of a Pyro program as above; wraps a model and its guide alike.

    A plate that Pyro itself subsamples (`pyro.plate("data", N, subsample_size=M)`) brings its own
    factor N/M, one of the batch's size does not: both come out as 1/M.

    Args:
        num_data: N, the size of the whole data set.
        plates: names of the plates over the data; sites in no such plate are global.
    """

    def __init__(self, num_data: int, *plates: str) -> None:
        super().__init__()
        self.num_data, self.plates = num_data, plates

    def _pyro_sample(self, msg: Any) -> None:
        frame = frame_of(msg, self.plates)
        size = self.num_data if frame is None else frame.full_size
        msg["scale"] = msg["scale"] / size
        msg["infer"]["_data_plates"] = self.plates  # for the objectives here


def per_datum(program: Program, num_data: int, *plates: str) -> Program:
    """Return the Pyro program with its log densities per datum of a data set of `num_data`.

    Args:
        program: a model or a guide.
        num_data: N, the size of the whole data set.
        plates: names of the plates over the data. Without them the first call finds the plates,
            as `fit` does: it runs the program once more on its arguments, and on a few of their
            rows if it has other plates than `"data"`.
    """
    known: tuple[str, ...] | None = plates or None

    def scaled(*args: Any, **kwargs: Any) -> Any:
        nonlocal known
        if known is None:
            known = data_plates_of(program, *args, **kwargs)
        with PerDatum(num_data, *known):
            return program(*args, **kwargs)

    return scaled


def is_elbo(objective: object) -> bool:
    """Whether an objective's value estimates the ELBO itself: with beta = 1, and nothing else."""
    pyros = (Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO)
    default = isinstance(objective, pyros) and not isinstance(objective, TraceTailAdaptive_ELBO)
    return getattr(objective, "is_elbo", default)


class StickingTheLanding(PathDerivative):
    """The ELBO, with a gradient that vanishes draw by draw where the guide is exact.

    Roeder, Wu & Duvenaud (2017), "Sticking the Landing": the path derivative alone, whose mean is
    the gradient's. It is a bound, and it is the ELBO.
    """

    is_elbo = True

    def _bound(self, traces: Traces, args: tuple[Any, ...]) -> Tensor:
        return _elbo(traces) / self.num_particles

    def _surrogate(self, traces: Traces, args: tuple[Any, ...]) -> Tensor:
        path = along_draws(self._bound(traces, args), traces)
        return _elbo(traces, fixed_guide=True) / self.num_particles + path


def _elbo(traces: Traces, fixed_guide: bool = False) -> Tensor:
    log_p, log_q = (
        torch.stack([torch.as_tensor(trace.log_prob_sum()) for trace in half]).sum()
        for half in zip(*traces, strict=True)
    )
    return log_p - (log_q.detach() if fixed_guide else log_q)


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


def _plates_over_data(traces: Traces) -> tuple[str, ...]:
    """Return the names of the plates over the data: those of `PerDatum`, or found by name."""
    model = traces[0][0]
    for _, node in sample_sites(model):
        if "_data_plates" in node["infer"]:
            return node["infer"]["_data_plates"]
    return data_plates([model])


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
