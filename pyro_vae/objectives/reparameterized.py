"""Bounds that are differentiated along reparameterized draws: what such objectives share.

With draws z = z(e, phi) of noise e, the gradient of a bound to the guide's parameters phi has two
parts (Roeder, Wu & Duvenaud 2017): the path derivative, through the draws, and the score function
-d log q(z|x)/d phi at fixed z. `Reparameterized` takes both, as `Trace_ELBO` does;
`PathDerivative` can keep to the first.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from pyro_vae.pairs.check import check_reparameterized

Program = Callable[..., Any]
Traces = list[tuple[poutine.Trace, poutine.Trace]]


class Reparameterized(ELBO):
    """Base of the objectives that are differentiated along reparameterized draws.

    A subclass gives the objective as a function of the traces of all particles, `_bound`, and, if
    its gradient is another than that of the value, `_surrogate`.

    Attributes:
        is_bound: the value's expectation is a lower bound of log p(x).
        is_elbo: the value's expectation is the ELBO.
        needs_reparameterization: every latent needs a guide with `rsample`.

    Args:
        num_particles: K, draws of the latents for each datum.
        vectorize_particles: draw them in one more plate on the left, at once; otherwise the
            programs run K times, for networks that take no further dimension.
        max_plate_nesting: depth of the programs' plates; by default found out by running them.
    """

    is_bound = True
    is_elbo = False
    needs_reparameterization = True

    def __init__(
        self,
        num_particles: int = 1,
        *,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
    ) -> None:
        if num_particles != int(num_particles) or num_particles < 1:
            raise ValueError(f"num_particles must be a whole number from 1, got {num_particles!r}")
        super().__init__(
            num_particles=num_particles,
            vectorize_particles=vectorize_particles and num_particles > 1,
            max_plate_nesting=max_plate_nesting,
        )

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return an estimate of minus the objective, in nats; no gradients."""
        with torch.no_grad():
            return -self._bound(self._all_traces(model, guide, args, kwargs), args).item()

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the loss as a scalar whose gradient is the estimator's."""
        return -self._surrogate(self._all_traces(model, guide, args, kwargs), args)

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss and add its gradients to those of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.item()

    def _bound(self, traces: Traces, args: tuple[Any, ...]) -> Tensor:
        raise NotImplementedError

    def _surrogate(self, traces: Traces, args: tuple[Any, ...]) -> Tensor:
        return self._bound(traces, args)

    def _all_traces(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Traces:
        """Trace the model and the guide: one pair of traces with all particles, or one for each."""
        traces = list(self._get_traces(model, guide, args, kwargs))
        for name, node in latents(traces[0][1]):
            check_reparameterized(name, node["fn"], self)
        return traces

    def _get_trace(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[poutine.Trace, poutine.Trace]:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


class _Leaves(Messenger):
    """Hands each draw on as a leaf of the graph, and keeps the draw itself beside it.

    What follows in the program then depends on the leaf; `along_draws` ties both together again.
    """

    def _pyro_post_sample(self, msg: Any) -> None:
        # Draws that have no gradient stay: `check_reparameterized` says so of them.
        if msg["fn"].has_rsample and not msg["is_observed"] and not site_is_subsample(msg):
            msg["infer"]["_draw"] = msg["value"]
            msg["value"] = msg["value"].detach().requires_grad_()


class PathDerivative(Reparameterized):
    """Base of the objectives that leave the guide's score function out of the gradient.

    d log w/d phi has a part through the draws z(phi), and -d log q(z)/d phi at fixed z, whose mean
    is zero but whose variance is not, not even where q is exact. The guide therefore hands its
    draws on as leaves, so that the gradient at the leaves can be carried on to the draws alone.
    A guide's density is needed as a function of z: a flow must have an inverse.
    """

    def _get_trace(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[poutine.Trace, poutine.Trace]:
        with _Leaves():
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = prune_subsample_sites(poutine.trace(replayed).get_trace(*args, **kwargs))
        guide_trace = prune_subsample_sites(guide_trace)
        model_trace.compute_log_prob()
        guide_trace.compute_log_prob()
        return model_trace, guide_trace


def along_draws(value: Tensor, traces: Traces) -> Tensor:
    """Return zero, whose gradient is that of `value` through the guide's draws alone."""
    sites = [node for _, guide in traces for _, node in latents(guide)]
    leaves = [node["value"] for node in sites]
    gradients = list(_gradients(value, leaves))
    path = torch.zeros_like(value)
    for index in reversed(range(len(sites))):
        term = (gradients[index] * sites[index]["infer"]["_draw"]).sum()
        path = path + term
        # A draw may depend on those before it, which it met as leaves.
        for before, gradient in enumerate(_gradients(term, leaves[:index])):
            gradients[before] = gradients[before] + gradient
    return path - path.detach()


def _gradients(value: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    if not leaves or not value.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)


def sample_sites(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    """Yield the sample sites of a trace, latent and observed, by name."""
    for name, node in trace.nodes.items():
        if node["type"] == "sample":
            yield name, node


def latents(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    """Yield the latent sites of a trace, by name."""
    return ((name, node) for name, node in sample_sites(trace) if not node["is_observed"])
