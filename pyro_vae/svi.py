"""One training step: a bound, its gradients, the optimizer's update."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import pyro.infer
from pyro import poutine
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

OptimizerFactory = Callable[[list[Tensor]], Optimizer]


class TorchOptim(PyroOptim):
    """One torch optimizer for all parameters, where `pyro.optim` keeps one for each and is slow.

    Args:
        optim: a torch optimizer, or a callable that makes one of a list of parameters, such as
            `functools.partial(torch.optim.Adam, lr=1e-3)`; it is called when the first step has
            shown which parameters the programs have. Parameters that appear later join it.
    """

    def __init__(self, optim: Optimizer | OptimizerFactory) -> None:
        self.optimizer = optim if isinstance(optim, Optimizer) else None
        self._factory = None if isinstance(optim, Optimizer) else optim
        self._known: set[Tensor] = set()

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Update the parameters by their gradients."""
        self.add(params)
        if self.optimizer is not None:
            self.optimizer.step()

    def add(self, params: Iterable[Tensor]) -> None:
        """Take parameters that were not there before under the optimizer's care."""
        if self._factory is None:
            return  # an optimizer that was given has the parameters that it was given
        new = [parameter for parameter in params if parameter not in self._known]
        if not new:
            return
        self._known.update(new)
        if self.optimizer is None:
            self.optimizer = self._factory(new)
        else:
            self.optimizer.add_param_group({"params": new})


class SVI(pyro.infer.SVI):
    """Stochastic variational inference: a drop-in for `pyro.infer.SVI`.

    It takes torch optimizers as well as Pyro's, and a step whose loss is not finite warns, as
    Pyro's does, but leaves the parameters as they were.

    Args:
        model: a Pyro model.
        guide: a Pyro guide with the model's latent sites.
        optim: a torch optimizer, a callable that makes one of a list of parameters, or a
            `pyro.optim` optimizer.
        loss: the objective: a `pyro.infer.ELBO`, or a function of model, guide and their arguments.
        loss_and_grads: as in `pyro.infer.SVI`, for a `loss` that is a function.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim | Optimizer | OptimizerFactory,
        loss: pyro.infer.ELBO | Callable[..., Any],
        loss_and_grads: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(optim, PyroOptim):
            optim = TorchOptim(optim)
        super().__init__(model, guide, optim, loss, loss_and_grads, **kwargs)
        self.objective = loss
        # Every parameter that a step has met, in the order of their appearance; a dict as a set
        # that keeps its order, which would otherwise differ from process to process.
        self.parameters: dict[Tensor, None] = {}

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one gradient step; arguments go to model and guide. Return the loss, a float."""
        with poutine.trace(param_only=True) as capture:
            loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        sites: Any = capture.trace.nodes.values()
        parameters = dict.fromkeys(site["value"].unconstrained() for site in sites)
        self.parameters |= parameters
        losses = loss if isinstance(loss, tuple) else (loss,)  # reweighted wake-sleep has two
        values = tuple(x.item() if isinstance(x, Tensor) else float(x) for x in losses)
        if all(map(math.isfinite, values)):
            self.optim(parameters)
        # To zero and not to None, as in Pyro: a parameter that a later step meets but does not use
        # still moves by its momentum.
        zero_grads(parameters)
        return type(loss)(values) if isinstance(loss, tuple) else values[0]
