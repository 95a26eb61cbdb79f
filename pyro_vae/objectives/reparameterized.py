"""Base classes of the objectives with pathwise gradients, through reparameterized samples.

For samples z = z(e, phi) of noise e, the gradient of a bound with respect to the guide's parameters
phi has two terms (Roeder, Wu & Duvenaud 2017): the path derivative, through the samples, and the
score function -d log q(z|x)/d phi at fixed z. `Reparameterized` keeps both, like `Trace_ELBO`.
`PathDerivative` allows its subclasses to drop the score function.
"""

import math
from typing import TypeAlias

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from pyro_vae.arguments import Count, checked
from pyro_vae.pairs.guides import without_observations
from pyro_vae.pairs.objectives import check_reparameterized
from pyro_vae.pairs.pair import Program
from pyro_vae.pairs.sites import Node, latent_sites

Args: TypeAlias = tuple[object, ...]
KwArgs: TypeAlias = dict[str, object]
Traces: TypeAlias = list[tuple[poutine.Trace, poutine.Trace]]  # (model, guide) of each particle


class Reparameterized(ELBO):
    """Base class of the objectives with pathwise gradients.

    A subclass defines `_bound`, the objective as a function of the traces of all particles. If its
    gradient is not that of the value, it also defines `_surrogate`.

    Attributes:
        is_bound: Whether the expected value is a lower bound of log p(x).
        is_elbo: Whether the expected value is the ELBO.
        is_linear: Whether unbiased estimates of log densities, as from a subsampled plate, keep the
            value a bound. They do not inside the exponential of an importance weight.
        needs_reparameterization: Whether the guide of every latent needs an `rsample`.

    Args:
        num_particles: K, the number of samples of the latents per datum.
        vectorize_particles: Whether to sample in one more plate on the left. Otherwise the programs
            run K times, for networks that do not accept another dimension.
        max_plate_nesting: Depth of the programs' plates. By default they run once to find it.

    Raises:
        ValueError: If num_particles is not a whole number of at least 1.
    """

    is_bound = True
    is_elbo = False
    is_linear = True
    needs_reparameterization = True

    @checked
    def __init__(
        self,
        num_particles: Count = 1,
        *,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
    ) -> None:
        super().__init__(
            num_particles=num_particles,
            vectorize_particles=vectorize_particles and num_particles > 1,
            max_plate_nesting=max_plate_nesting,
        )

    def loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """Return an estimate of minus the objective, in nats; no gradients."""
        with torch.no_grad():
            return -self._bound(self._all_traces(model, guide, args, kwargs), args).item()

    def differentiable_loss(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> Tensor:
        """Return the loss as a scalar. Its gradient is the gradient estimator."""
        return -self._surrogate(self._all_traces(model, guide, args, kwargs), args)

    def loss_and_grads(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> float:
        """Return the loss and accumulate its gradients in the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.item()

    def _bound(self, traces: Traces, args: Args) -> Tensor:
        raise NotImplementedError

    def _surrogate(self, traces: Traces, args: Args) -> Tensor:
        return self._bound(traces, args)

    def _all_traces(self, model: Program, guide: Program, args: Args, kwargs: KwArgs) -> Traces:
        """Trace model and guide: once for all particles if vectorized, or once for each."""
        traces = list(self._get_traces(model, guide, args, kwargs))
        for name, node in latent_sites(traces[0][1]):
            check_reparameterized(name, node["fn"], self)
        return traces

    def _get_trace(
        self, model: Program, guide: Program, args: Args, kwargs: KwArgs
    ) -> tuple[poutine.Trace, poutine.Trace]:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


class _Leaves(Messenger):
    """Replaces each sample by a leaf of the autograd graph, and stores the sample.

    The rest of the program depends on the leaf. `along_draws` connects leaf and sample again.
    """

    def _pyro_post_sample(self, msg: Node) -> None:
        # Samples without gradients are kept. `check_reparameterized` refuses them later.
        if msg["fn"].has_rsample and not msg["is_observed"] and not site_is_subsample(msg):
            msg["infer"]["_draw"] = msg["value"]
            msg["value"] = msg["value"].detach().requires_grad_()


class PathDerivative(Reparameterized):
    """Base class of the objectives that can drop the guide's score function from the gradient.

    d log w/d phi has a term through the samples z(phi), and the term -d log q(z)/d phi at fixed z.
    The second term has mean zero, but its variance is positive even if q is exact. The samples of
    the guide are therefore replaced by leaves of the autograd graph. The gradient with respect to
    the leaves is then propagated through the samples alone. This needs the guide's density as a
    function of z, so a flow must be invertible.
    """

    def _get_trace(
        self, model: Program, guide: Program, args: Args, kwargs: KwArgs
    ) -> tuple[poutine.Trace, poutine.Trace]:
        with _Leaves():
            guide_trace = poutine.trace(without_observations(guide)).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = prune_subsample_sites(poutine.trace(replayed).get_trace(*args, **kwargs))
        guide_trace = prune_subsample_sites(guide_trace)
        model_trace.compute_log_prob()
        guide_trace.compute_log_prob()
        return model_trace, guide_trace


def along_draws(value: Tensor, traces: Traces) -> Tensor:
    """Return zero, with the gradient of `value` through the guide's samples alone."""
    sites = [node for _, guide in traces for _, node in latent_sites(guide)]
    leaves = [node["value"] for node in sites]
    gradients = list(_gradients(value, leaves))
    path = torch.zeros_like(value)
    for index in reversed(range(len(sites))):
        term = (gradients[index] * sites[index]["infer"]["_draw"]).sum()
        path = path + term
        # A sample may depend on the leaves of the samples before it.
        for before, gradient in enumerate(_gradients(term, leaves[:index])):
            gradients[before] = gradients[before] + gradient
    return path - path.detach()


def _gradients(value: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    if not leaves or not value.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)
