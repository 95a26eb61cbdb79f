"""Weighs the latents' log densities by beta: fixed, or a function of the step.

    E[log p(x|z)] - beta KL(q(z|x) || p(z))

A small beta at first keeps the guide from collapsing onto the prior before the decoder has learned
to use the latents; a large one, to the end, presses the latents to be independent.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

Program = Callable[..., Any]


@dataclass(frozen=True)
class Linear:
    """beta rises from `start` to `stop` over the first `num_steps` steps, and stays.

    Bowman et al. (2016), "Generating Sentences from a Continuous Space", section 3.1.
    """

    num_steps: int
    start: float = 0.0
    stop: float = 1.0

    def __call__(self, step: int) -> float:
        """Return beta at a step, counted from 0."""
        return self.start + (self.stop - self.start) * min(step / self.num_steps, 1.0)


@dataclass(frozen=True)
class Cyclic:
    """beta rises from 0 to `stop` over the first `ramp` of each `period` steps, and stays.

    Fu et al. (2019), "Cyclical Annealing Schedule": a fresh start each cycle lets the guide use
    latents that it left to the prior in the cycle before.
    """

    period: int
    ramp: float = 0.5
    stop: float = 1.0

    def __call__(self, step: int) -> float:
        """Return beta at a step, counted from 0."""
        return self.stop * min(step % self.period / self.period / self.ramp, 1.0)


class _ScaleLatents(Messenger):
    """Scales the log densities of the latents of a program."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = scale

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.scale


class Beta(ELBO):
    """An objective with the log densities of all latents, in model and guide, scaled by beta.

    Around the ELBO this is the objective of Higgins et al. (2017), "beta-VAE", eq. 4. For
    beta >= 1 it is a bound, below the ELBO; for beta < 1, as while it is annealed, it is not.

    Args:
        beta: a number, or a function of the step, counted from 0, such as `Linear` or `Cyclic`.
        objective: what is scaled; `Trace_ELBO()` by default.

    Raises:
        ValueError: for a number below 0.
    """

    is_elbo = False

    def __init__(self, beta: float | Callable[[int], float], objective: ELBO | None = None) -> None:
        self.objective: Any = Trace_ELBO() if objective is None else objective
        super().__init__(num_particles=self.objective.num_particles)
        if not callable(beta) and not 0 <= beta < math.inf:
            raise ValueError(f"beta must be finite and at least 0, got {beta!r}")
        self.schedule = beta if callable(beta) else lambda step: beta
        # Tensors that are changed in place: a compiled step reads beta anew, and the count of steps
        # is no Python number that its graph would have to be traced anew for.
        self._num_steps = torch.tensor(0)
        self.beta = torch.tensor(self.schedule(0), dtype=torch.float64)

    @property
    def is_bound(self) -> bool:
        """Whether the value is a lower bound of log p(x) at the present beta."""
        return self.beta.item() >= 1 and getattr(self.objective, "is_bound", True)

    @property
    def needs_reparameterization(self) -> bool:
        """As the objective inside."""
        return getattr(self.objective, "needs_reparameterization", False)

    @property
    def num_steps(self) -> int:
        """Number of steps that have been begun."""
        return int(self._num_steps)

    @num_steps.setter
    def num_steps(self, value: int) -> None:
        self._num_steps.fill_(value)

    def advance(self) -> None:
        """Set beta for the next step."""
        self.beta.fill_(self.schedule(self.num_steps))
        self.num_steps += 1

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return minus the objective at the present beta, in nats; no gradients."""
        return self.objective.loss(self._scaled(model), self._scaled(guide), *args, **kwargs)

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the loss at the present beta, as a scalar with gradients."""
        return self.objective.differentiable_loss(
            self._scaled(model), self._scaled(guide), *args, **kwargs
        )

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Advance beta by a step; return the loss and add its gradients to the parameters'."""
        self.advance()
        return self.loss_and_grads_at_beta(model, guide, *args, **kwargs)

    def loss_and_grads_at_beta(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> float:
        """Do as `loss_and_grads`, at the present beta: what a compiled step repeats."""
        return self.objective.loss_and_grads(
            self._scaled(model), self._scaled(guide), *args, **kwargs
        )

    def _scaled(self, program: Program) -> Program:
        return _ScaleLatents(self.beta)(program)

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return self.objective._get_trace(self._scaled(model), self._scaled(guide), args, kwargs)
