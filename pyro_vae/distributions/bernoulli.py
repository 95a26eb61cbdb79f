"""Bernoulli and continuous Bernoulli, accurate in float32 at extreme logits."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all


def log_sigmoid(logits: Tensor) -> Tensor:
    """Return log sigmoid(logits), off by no more than rounding of 1.

    Torch's goes through `log1p`, which on a CPU costs as much as ten `log`. With r = max(0, -y),

        log sigmoid(y) = -r - log(1 + e^(-|y|)),    -|y| = -y - 2 r

    which, so written, has the right gradient at 0, too.
    """
    below = (-logits).relu()
    return -(below + (1 + (-logits - 2 * below).exp()).log())


class FastBernoulli(dist.Bernoulli):
    """A Bernoulli whose log density is log sigmoid(+-logits), for a value of 1 or 0.

    The same number as Pyro's, which goes through a cross entropy for values between 0 and 1, in a
    fraction of the time.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return log_sigmoid((2 * value - 1) * self.logits)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> dist.TorchDistribution:
        """Return the distribution with so many of its last dimensions, or all, as one event."""
        ndims = reinterpreted_batch_ndims
        ndims = len(self.batch_shape) if ndims is None else ndims
        return _BitsOfAnEvent(self, ndims) if ndims > 0 else super().to_event(ndims)


class _BitsOfAnEvent(dist.Independent):
    """The `FastBernoulli` of an event, whose log density takes few logarithms."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats."""
        if self._validate_args:
            self._validate_sample(value)
        margin = (2 * value - 1) * self.base_dist.logits
        return _SumOfLogSigmoids.apply(margin, self.reinterpreted_batch_ndims)


class _SumOfLogSigmoids(torch.autograd.Function):
    """The sum of log sigmoid(m) = min(m, 0) + log sigmoid(|m|) over the last dimensions of m.

    The second term is at least log 1/2, so that `TOGETHER` of its sigmoids are multiplied before
    their logarithm is taken: no float32 is too small for the product. On a processor a logarithm
    costs as much as thirty products.
    """

    TOGETHER = 112  # 2^-112 is a normal float32, and 784 = 7 * 112

    @staticmethod
    def forward(ctx: Any, margin: Tensor, ndims: int) -> Tensor:
        ctx.save_for_backward(margin)
        together = _SumOfLogSigmoids.TOGETHER
        linear = margin.clamp(max=0).flatten(-ndims).sum(-1)  # its memory serves again below
        factors = margin.abs().sigmoid_().flatten(-ndims)
        even = factors.shape[-1] // together * together
        products = factors[..., :even].unflatten(-1, (-1, together)).prod(-1)
        rest = factors[..., even:].prod(-1)
        return linear + products.log().sum(-1) + rest.log()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (margin,) = ctx.saved_tensors
        gradient = gradient.reshape(*gradient.shape, *(1,) * (margin.dim() - gradient.dim()))
        return gradient * torch.sigmoid(-margin), None


class ContinuousBernoulli(dist.TorchDistribution):
    """The density on [0, 1] that is proportional to e^(ηx): Loaiza-Ganem & Cunningham (2019).

    With λ = sigmoid(η) it is their C(λ) λ^x (1-λ)^(1-x). It falls off from one end of the interval:
    with s = |η| and d the distance of x from the end that η points to,

        log p(x) = -s d - log (1 - e^(-s)) / s

    Torch's class takes the normalizer through λ, which float32 rounds to 1 from η = 16 on: log
    densities there are wrong by log(η/16), and the normalizer's gradient is gone.

    Args:
        logits: η, of any shape, which is the batch_shape.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012  # as torch declares it
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        (self.logits,) = broadcast_all(logits)
        super().__init__(self.logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ContinuousBernoulli":
        """Return the distribution with this batch_shape."""
        return type(self)(self.logits.expand(batch_shape), self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        slope = self._slope()
        small, safe = _near_zero(slope)
        series = slope * (-1 / 2 + slope * (1 / 24 - slope**2 / 2880 * (1 - slope**2 / 63)))
        # No slope here is so small that expm1, as slow as ten exp, would be needed.
        log_normalizer = torch.where(small, series, ((1 - (-safe).exp()) / safe).log())
        return -slope * self._flip(value) - log_normalizer

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by inverting the distribution function."""
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        slope = self._slope()
        small, safe = _near_zero(slope)
        # Short of -1, where a steep density would send a uniform of 1 to infinity.
        fall = (uniform * torch.expm1(-safe)).clamp(min=torch.finfo(uniform.dtype).eps - 1)
        distance = torch.log1p(fall) / -safe
        flat = uniform - slope * uniform * (1 - uniform) / 2
        return self._flip(torch.where(small, flat, distance).clamp(0, 1))

    @property
    def mean(self) -> Tensor:
        """E[x]."""
        slope = self._slope()
        small, safe = _near_zero(slope)
        series = 1 / 2 - slope / 12 * (1 - slope**2 / 60 * (1 - slope**2 / 42))
        return self._flip(torch.where(small, series, 1 / safe - 1 / torch.expm1(safe)))

    @property
    def variance(self) -> Tensor:
        """Var[x]."""
        slope = self._slope()
        small, safe = _near_zero(slope)
        series = 1 / 12 - slope**2 / 240 * (1 - slope**2 * 5 / 126)
        return torch.where(small, series, safe**-2 - (2 * torch.sinh(safe / 2)) ** -2)

    def _slope(self) -> Tensor:
        # abs() has no gradient at 0, where a decoder may well start.
        return torch.where(self.logits >= 0, self.logits, -self.logits)

    def _flip(self, value: Tensor) -> Tensor:
        """Turn x into its distance from the end that η points to, and back."""
        return torch.where(self.logits >= 0, 1 - value, value)


def _near_zero(slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return where a series must stand in for 0/0, and the slope with 1 put there.

    Both sides of a `where` are differentiated, so that the side not taken has to be finite, too.
    """
    small = slope < 0.1
    return small, torch.where(small, torch.ones_like(slope), slope)
