"""Modes of the posterior of each datum, and the curvature there, by a damped Newton method."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.pairs.unconstrained import Unconstrained

STEPS = (0.0, 0.05, 0.2, 0.5, 1.0)  # lengths of a Newton step that are compared
TOLERANCE = 0.01  # gain in nats that a next step promises, below which a datum is finished
MAX_STEPS = 20


@dataclass(frozen=True)
class Modes:
    """Modes of some data.

    Attributes:
        state: States, shape `(data, dim)`.
        log_joint: Log density of states and data, shape `(data,)`.
        precision: Negative Hessians of the log density, shape `(data, dim, dim)`.
    """

    state: Tensor
    log_joint: Tensor
    precision: Tensor


def find_modes(posterior: Unconstrained, start: Tensor, scale: Tensor) -> Modes:
    """Climb from a state of each datum to a mode.

    A step solves (-H) d = gradient with the absolute eigenvalues of the Hessian H, so that it
    ascends also where the log density is not concave. In units of the prior's scale the eigenvalues
    are at least one, the precision of a normal prior. Of several step lengths the best is taken.
    A Hessian that is not finite, as in float32 at the edge of a support, is that of the prior.

    Args:
        posterior: The log density.
        start: First states, shape `(data, dim)`.
        scale: Standard deviations of the states under the prior, shape `(dim,)`.
    """
    state = start.clone()
    num_data = len(state)
    log_joint = state.new_full((num_data,), -torch.inf)
    prior = torch.diag_embed(scale**-2)
    precision = prior.repeat(num_data, 1, 1)
    active = torch.arange(num_data, device=state.device)
    for _ in range(MAX_STEPS):
        rows = posterior.rows(active)
        gradient, hessian = gradient_and_hessian(rows, state[active])
        known = hessian.isfinite().all(-1).all(-1)[:, None, None]
        gradient, hessian = gradient.nan_to_num(0.0, 0.0, 0.0), torch.where(known, hessian, -prior)
        precision[active] = -hessian
        values, vectors = eigen(-hessian, scale)
        step = scale * _solve(values, vectors, scale * gradient)
        lengths = torch.tensor(STEPS, dtype=state.dtype, device=state.device)[:, None, None]
        with torch.no_grad():
            tried = state[active] + lengths * step
            gains = rows.log_joint(tried).nan_to_num(nan=-torch.inf)
        best = gains.argmax(0)
        each = torch.arange(len(active), device=state.device)
        state[active], log_joint[active] = tried[best, each], gains[best, each]
        promised = 0.5 * (step * gradient).sum(-1)
        active = active[(promised > TOLERANCE) & (best > 0)]
        if not len(active):
            break
    return Modes(state, log_joint, precision)


def value_and_gradient(posterior: Unconstrained, states: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log density `(samples, data)` and its gradient `(samples, data, dim)` at states.

    Gradients that are not finite are zero.
    """
    states = states.detach().requires_grad_()
    with torch.enable_grad():
        values = posterior.log_joint(states)
        (gradient,) = torch.autograd.grad(values.sum(), states)
    return values.detach(), gradient.nan_to_num(0.0, 0.0, 0.0)


def gradient_and_hessian(posterior: Unconstrained, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient `(data, dim)` and the Hessian `(data, dim, dim)` of the log density.

    Each datum is repeated for every dimension, so that two backward passes give all rows of the
    Hessian: the log density of a datum depends on no other row.
    """
    dim = state.shape[-1]
    copies = state.detach().expand(dim, *state.shape).clone().requires_grad_()
    with torch.enable_grad():
        total = posterior.log_joint(copies).sum()
        (gradient,) = torch.autograd.grad(total, copies, create_graph=True)
        entries = gradient.diagonal(dim1=0, dim2=2)  # entry i of copy i
        (hessian,) = torch.autograd.grad(entries.sum(), copies)
    hessian = hessian.movedim(0, 1)
    return gradient[0].detach(), 0.5 * (hessian + hessian.mT)


def eigen(precision: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, at least one, and eigenvectors of precisions in units of `scale`."""
    values, vectors = torch.linalg.eigh(scale[:, None] * precision * scale)
    return values.abs().clamp(min=1.0), vectors


def _solve(values: Tensor, vectors: Tensor, right: Tensor) -> Tensor:
    return (vectors @ ((vectors.mT @ right.unsqueeze(-1)) / values.unsqueeze(-1))).squeeze(-1)
