"""KL annealing and beta-VAE: scale the log densities of the latents by beta.

    E[log p(x|z)] - beta KL(q(z|x) || p(z))

A small beta at the start of training keeps the guide from collapsing to the prior before the
decoder uses the latents. A large beta throughout favors independent latents.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Any, TypeAlias

import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.arguments import (
    ArgumentError,
    AtLeastZero,
    Count,
    Instance,
    Number,
    check_fields,
    checked,
)
from pyro_vae.objectives.reparameterized import Args, KwArgs
from pyro_vae.pairs.pair import Program
from pyro_vae.pairs.sites import Node

Share: TypeAlias = Annotated[float, Number(above=0, maximum=1)]
OneBeta: TypeAlias = (
    AtLeastZero
    | Annotated[Callable[[int], float], Instance((), "a function of the step", functions=True)]
)
AnyBeta: TypeAlias = (
    OneBeta
    | Annotated[Mapping[str, OneBeta], Instance((Mapping,), "a mapping from latents to these")]
)
Objective: TypeAlias = Annotated[ELBO, Instance((ELBO,), "an objective such as Trace_ELBO()")]


@dataclass(frozen=True)
class Linear:
    """Schedule that increases beta linearly and then keeps it constant.

    Bowman et al. (2016), "Generating Sentences from a Continuous Space", section 3.1.

    Args:
        num_steps: Number of steps of the increase.
        start: First value of beta.
        stop: Last value of beta.

    Example:
        >>> import pyro_vae as pv
        >>> schedule = pv.objectives.Linear(4)
        >>> [schedule(step) for step in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]

    See also: `Beta`, which takes the schedule; `Cyclic`.
    """

    num_steps: Count
    start: AtLeastZero = 0.0
    stop: AtLeastZero = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, step: int) -> float:
        """Return beta at a step. Steps are counted from 0."""
        return self.start + (self.stop - self.start) * min(step / self.num_steps, 1.0)


@dataclass(frozen=True)
class Cyclic:
    """Schedule that repeats cycles of a linear increase of beta from 0 and a constant part.

    Fu et al. (2019), "Cyclical Annealing Schedule". Each restart lets the guide use latents that
    collapsed to the prior in the cycle before.

    Args:
        period: Number of steps of a cycle.
        ramp: Fraction of the cycle in which beta increases.
        stop: Last value of beta in a cycle.

    Example:
        >>> import pyro_vae as pv
        >>> schedule = pv.objectives.Cyclic(4)
        >>> [schedule(step) for step in range(6)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5]

    See also: `Beta`, which takes the schedule; `Linear`.
    """

    period: Count
    ramp: Share = 0.5
    stop: AtLeastZero = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, step: int) -> float:
        """Return beta at a step. Steps are counted from 0."""
        return self.stop * min(step % self.period / self.period / self.ramp, 1.0)


class _ScaleLatents(Messenger):
    """Effect handler that scales the log densities of the latents.

    Args:
        beta: Scale of all latents, or the scales of the named ones, shape `(len(names),)`.
        names: Names of latents. Empty: all.
    """

    def __init__(self, beta: Tensor, names: tuple[str, ...]) -> None:
        super().__init__()
        self.beta, self.names = beta, names
        self.missing = set(names)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        if self.missing and kind is None:
            missing = ", ".join(map(repr, sorted(self.missing)))
            raise ArgumentError(f"beta has a value for {missing}, which is no latent of the pair")

    def _pyro_sample(self, msg: Node) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        if not self.names:
            msg["scale"] = msg["scale"] * self.beta
        elif msg["name"] in self.names:
            msg["scale"] = msg["scale"] * self.beta[self.names.index(msg["name"])]
            self.missing.discard(msg["name"])


class Beta(ELBO):
    """Another objective, with the log densities of all latents in model and guide scaled by beta.

    For the ELBO, this is the objective of Higgins et al. (2017), "beta-VAE", eq. 4. For beta >= 1
    it is a lower bound of log p(x), at most the ELBO. For beta < 1, as during annealing, it is not
    a bound.

    Args:
        beta: A number, or a function of the step (counted from 0) such as `Linear` or `Cyclic`. Or
            a mapping from names of latents to these, such as the layers of a `LadderVAE`: Sønderby
            et al. (2016), "Ladder Variational Autoencoders", section 2.3. Other latents have 1.
        objective: Objective to scale. Default: `Trace_ELBO()`.

    Raises:
        ValueError: If beta is a negative or infinite number or an empty mapping; or, when the
            programs run, if it names a site that is not a latent.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [], 4)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(4, [], 4)),
        ... )
        >>> x = torch.ones(8, 4)
        >>> objective = pv.objectives.Beta(pv.objectives.Linear(100))
        >>> objective.differentiable_loss(vae.model, vae.guide, x).shape
        torch.Size([])
        >>> fit = pv.fit(vae, x, objective=objective, epochs=1)
        >>> "train_objective" in fit.history[0]
        True
        >>> by_layer = pv.objectives.Beta({"z": pv.objectives.Linear(100)})
        >>> by_layer.beta
        tensor([0.], dtype=torch.float64)

    See also: `Linear`, `Cyclic`, `FreeBits`.
    """

    is_elbo = False

    @checked
    def __init__(self, beta: AnyBeta, objective: Objective | None = None) -> None:
        self.objective: Any = Trace_ELBO() if objective is None else objective
        super().__init__(num_particles=self.objective.num_particles)
        self.names = tuple(beta) if isinstance(beta, Mapping) else ()
        self.schedule = _schedule(beta)
        # Both are tensors that change in-place. A compiled step reads the new beta. A step count as
        # a Python number would be a guard that forces a new graph capture at each step.
        self._num_steps = torch.tensor(0)
        try:
            self.beta = torch.tensor(self.schedule(0), dtype=torch.float64)
        except Exception as error:  # from the code of the user
            raise ArgumentError(
                f"beta must be a function of the step that returns a number; at step 0 it raises "
                f"{error!r}"
            ) from error

    @property
    def is_bound(self) -> bool:
        """Whether the value is a lower bound of log p(x) at the current beta."""
        return bool((self.beta >= 1).all()) and getattr(self.objective, "is_bound", True)

    @property
    def needs_reparameterization(self) -> bool:
        """Whether the scaled objective needs reparameterized samples."""
        return getattr(self.objective, "needs_reparameterization", False)

    @property
    def num_steps(self) -> int:
        """Number of steps so far."""
        return int(self._num_steps)

    @num_steps.setter
    def num_steps(self, value: int) -> None:
        self._num_steps.fill_(value)

    def advance(self) -> None:
        """Set beta for the next step."""
        self.beta.copy_(torch.as_tensor(self.schedule(self.num_steps), dtype=torch.float64))
        self.num_steps += 1

    def loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """Return minus the objective at the current beta, in nats, without gradients."""
        return self.objective.loss(self._scaled(model), self._scaled(guide), *args, **kwargs)

    def differentiable_loss(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> Tensor:
        """Return the loss at the current beta, as a scalar with gradients."""
        return self.objective.differentiable_loss(
            self._scaled(model), self._scaled(guide), *args, **kwargs
        )

    def loss_and_grads(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> float:
        """Advance beta by a step. Return the loss and accumulate gradients in the parameters."""
        self.advance()
        return self.loss_and_grads_at_beta(model, guide, *args, **kwargs)

    def loss_and_grads_at_beta(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> float:
        """Do the same as `loss_and_grads` without advancing beta. A compiled step repeats it."""
        return self.objective.loss_and_grads(
            self._scaled(model), self._scaled(guide), *args, **kwargs
        )

    def _scaled(self, program: Program) -> Program:
        return _ScaleLatents(self.beta, self.names)(program)

    def _get_trace(
        self, model: Program, guide: Program, args: Args, kwargs: KwArgs
    ) -> tuple[poutine.Trace, poutine.Trace]:
        return self.objective._get_trace(self._scaled(model), self._scaled(guide), args, kwargs)


def _schedule(beta: AnyBeta) -> Callable[[int], float | list[float]]:
    """Return the function of the step that gives beta, or the list of all betas of a mapping."""
    if isinstance(beta, Mapping):
        if not beta:
            raise ArgumentError("beta must name at least one latent, got an empty mapping")
        schedules = [_of_step(_of_one(name, value)) for name, value in beta.items()]
        return lambda step: [schedule(step) for schedule in schedules]
    return _of_step(beta)


def _of_step(beta: OneBeta) -> Callable[[int], float]:
    return beta if callable(beta) else lambda step: beta


@checked
def _of_one(name: str, beta: OneBeta) -> OneBeta:
    """Return the beta of one latent of a mapping, checked."""
    return beta
