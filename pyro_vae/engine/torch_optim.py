"""One torch optimizer for all parameters, with Pyro's optimizer interface."""

from collections.abc import Callable, Iterable
from typing import Any

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
