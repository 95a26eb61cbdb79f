"""`Context`: contexts in which a step has to run eagerly, such as a handler of Pyro."""

from collections.abc import Iterable

import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor
from torch.nn.utils import parametrize

from pyro_vae.engine.compilation_warning import warn_of_context


class Context:
    """Where steps are taken. If many run eagerly because of it, a warning says so.

    Args:
        many: Number of consecutive eager steps without a warning.
    """

    def __init__(self, many: int) -> None:
        self._many, self._num_eager = many, 0  # consecutive steps

    def is_eager(self, parameters: Iterable[Tensor]) -> bool:
        """Return whether the step that is taken now has to run eagerly.

        Args:
            parameters: Parameters of the step.
        """
        reason = _reason()
        if reason is None and any(p.grad is not None for p in parameters):
            reason = "parameters have gradients of other code, such as pyro.infer.SVI, before them"
        self._num_eager = 0 if reason is None else self._num_eager + 1
        if reason is not None and self._num_eager == self._many + 1:
            warn_of_context(reason)
        return reason is not None


def _reason() -> str | None:
    """Return why a step has to run eagerly where it is called; None if it has not."""
    if am_i_wrapped():
        return "they are taken inside a handler of Pyro"
    if not torch.is_grad_enabled():
        return "they are taken without gradients"
    if torch.is_anomaly_enabled():
        return "torch's anomaly detection looks at each operation"
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return "they are taken inside hooks of saved tensors, such as save_on_cpu"
    if parametrize._cache_enabled:  # a trial run would leave its weights in the cache
        return "they are taken inside torch.nn.utils.parametrize.cached()"
    return None
