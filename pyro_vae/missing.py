"""Missing values: NaN entries of x, which say nothing about the latents and are imputed from them.

Where the entries of x are independent given z, those that are missing at random integrate out of
p(x|z) and leave the product over the observed ones. The bound is then one on log p(x_observed).
"""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.distributions import entries_of
from pyro_vae.parts import Part


class Missing(Part):
    """p(x_observed|z): any likelihood that is a product over entries, with NaN entries left out.

    `VAE.impute` fills them in. The guide's encoder must know about NaN, too: see
    `networks.WithMask`.

    Args:
        likelihood: p(x|z); its draws and moments are those of complete observations. Each entry's
            support contains 0 or 1/2.

    Raises:
        ValueError: when called, where the likelihood's entries depend on each other.
    """

    def __init__(self, likelihood: Callable[[Tensor], dist.TorchDistribution]) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z), batch_shape `z.shape[:-1]`, event_shape that of one observation."""
        complete = self.likelihood(z)
        return PartlyObserved(entries_of(complete)).to_event(len(complete.event_shape))


class PartlyObserved(dist.TorchDistribution):
    """A distribution of single entries whose NaN values have the log density 0.

    Args:
        entries: the distribution of entries that are observed, event_shape `()`.
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, entries: dist.TorchDistribution, validate_args: bool | None = None) -> None:
        self.entries: Any = entries
        super().__init__(entries.batch_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """That of the entries, and NaN."""
        return _OrMissing(self.entries.support)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PartlyObserved":
        """Return the distribution with this batch_shape."""
        return type(self)(self.entries.expand(torch.Size(batch_shape)), self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats, 0 where the value is NaN."""
        if self._validate_args:
            self._validate_sample(value)
        missing = value.isnan()
        # The missing entries' densities are computed and thrown away, but their gradients are
        # multiplied by 0: they must be finite, as they are at a value in the support. A half is
        # in every common support that is continuous, 0 in every discrete one.
        half = torch.full_like(value, 0.5)
        filler = torch.where(self.entries.support.check(half), half, torch.zeros_like(value))
        log_prob = self.entries.log_prob(torch.where(missing, filler, value))
        return torch.where(missing, torch.zeros_like(log_prob), log_prob)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw complete values."""
        return self.entries.sample(torch.Size(sample_shape))

    @property
    def mean(self) -> Tensor:
        """E[x] of complete values."""
        return self.entries.mean

    @property
    def variance(self) -> Tensor:
        """Var[x] of complete values."""
        return self.entries.variance


class _OrMissing(constraints.Constraint):
    """A support, and NaN."""

    def __init__(self, base: constraints.Constraint) -> None:
        self.base = base

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]  # torch's own combinations do so
        """Whether the support is discrete."""
        return self.base.is_discrete

    def check(self, value: Tensor) -> Tensor:
        """Return which values are in the support or NaN."""
        return self.base.check(value) | value.isnan()

    def __repr__(self) -> str:
        return f"{self.base} or NaN"
