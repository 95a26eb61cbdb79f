"""A torch optimizer behind the interface of Pyro's optimizers."""

import inspect
from collections.abc import Callable, Iterable

from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.runtime.files import CheckpointError

OptimizerFactory = Callable[[list[Tensor]], Optimizer]


class TorchOptim(PyroOptim):
    """One torch optimizer for all parameters; `pyro.optim` keeps one for each, which is slower.

    Args:
        optim: Torch optimizer, or callable that makes one from a list of parameters, such as
            `functools.partial(torch.optim.Adam, lr=1e-3)`. The callable is called after the first
            bound has been computed, when the parameters of the programs are known. Parameters that
            appear later are added as a parameter group.

    Raises:
        ValueError: If the optimizer computes the loss itself, as `torch.optim.LBFGS` does.
    """

    def __init__(self, optim: Optimizer | OptimizerFactory) -> None:
        self.optimizer = _without_closure(optim) if isinstance(optim, Optimizer) else None
        self._factory = None if isinstance(optim, Optimizer) else optim
        self._known: set[Tensor] = set()
        self.is_restored = False  # whether the next step is the first one with a restored state

    def __call__(self, params: Iterable[Tensor], *args: object, **kwargs: object) -> None:
        """Update the parameters by their gradients."""
        self.add(params)
        if self.optimizer is None:
            return
        try:
            self.optimizer.step()
        except Exception as error:
            if self.is_restored:
                raise CheckpointError(
                    f"{type(self.optimizer).__name__} cannot use its state in the checkpoint: "
                    f"{error}: start again without resume"
                ) from error
            raise
        self.is_restored = False

    def add(self, params: Iterable[Tensor]) -> None:
        """Add parameters that the optimizer does not have yet."""
        if self._factory is None:
            return  # the caller of an existing optimizer chose its parameters
        new = [parameter for parameter in params if parameter not in self._known]
        if not new:
            return
        self._known.update(new)
        if self.optimizer is None:
            self.optimizer = _without_closure(self._factory(new))
        else:
            self.optimizer.add_param_group({"params": new})


def _without_closure(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer; refuse one that computes the loss several times in a step."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f"{type(optimizer).__name__} computes the loss several times in each step, by a "
            "closure, but SVI computes it once: expected an optimizer such as torch.optim.Adam"
        )
    return optimizer
