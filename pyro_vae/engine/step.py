"""Types that `Compiler` and `SVI` share; a compiler knows a training step by `StepProtocol`."""

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

from pyro.optim import PyroOptim
from torch import Tensor

Precision: TypeAlias = Literal["fp32", "bf16"]
Program: TypeAlias = Callable[..., object]
Arguments: TypeAlias = tuple[object, ...]
Keywords: TypeAlias = dict[str, object]
Loss: TypeAlias = float | Tensor | tuple[float | Tensor, ...]  # wake-sleep returns two losses
LossValue: TypeAlias = float | tuple[float, ...]


class StepProtocol(Protocol):
    """The operations and the state of a training step that a compiler needs.

    `share` is the fraction of the minibatch's rows that this process computes if several processes
    take the step together, and None if this process takes it alone.

    Attributes:
        model: Model program.
        guide: Guide program.
        optim: Optimizer of all parameters.
        parameters: Parameters seen so far, in order of appearance.
        trained: Parameters that have had a gradient.
        precision: Precision of the linear and convolutional layers.
        loss_and_grads: Callable that computes the loss and fills the gradients, as in Pyro.
    """

    model: Program
    guide: Program
    optim: PyroOptim
    parameters: dict[Tensor, None]
    trained: set[Tensor]
    precision: Precision
    loss_and_grads: Callable[..., Loss]

    def gradients(self, args: Arguments, kwargs: Keywords) -> tuple[Loss, list[Tensor]]:
        """Compute the loss and the gradients; return the loss and the parameters."""

    def bound(self, args: Arguments, kwargs: Keywords) -> Loss:
        """Compute the loss as an eager step does, with its gradients but without an update."""

    def update(
        self, values: tuple[float, ...], parameters: list[Tensor], share: float | None
    ) -> tuple[float, ...]:
        """Update parameters by their gradients and clear these; return the losses."""

    def eager_step(
        self,
        args: Arguments,
        kwargs: Keywords,
        share: float | None,
        observe: Callable[[list[Tensor], tuple[float, ...]], None] | None = None,
    ) -> LossValue:
        """Take the step without a compiled program; return the loss."""

    def any_process(self, compiled: bool, share: float | None) -> bool:
        """Return whether any process took the step with a compiled program."""


def loss_values(loss: Loss) -> tuple[float, ...]:
    """Return the value of a loss, or the values of several, as Python floats."""
    losses = loss if isinstance(loss, tuple) else (loss,)
    return tuple(x.detach().item() if isinstance(x, Tensor) else float(x) for x in losses)
