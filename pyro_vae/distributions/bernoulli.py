"""Bernoulli and continuous Bernoulli, accurate in float32 at extreme logits."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.distributions.utils import broadcast_all

from pyro_vae.distributions.special import in_float64, like


def log_sigmoid(logits: Tensor) -> Tensor:
    """Return log sigmoid(logits), with an absolute error of at most the rounding error of 1.

    The version of torch uses `log1p`, which on a CPU costs as much as ten `log`. With
    r = max(0, -y),

        log sigmoid(y) = -r - log(1 + e^(-|y|))

    The gradient of `abs` is 0 at 0. `torch.where` has the correct one.

    Args:
        logits: Logits y, of any shape.

    Returns:
        log sigmoid(y), of the same shape.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import log_sigmoid
        >>> log_sigmoid(torch.tensor([-200.0, 0.0]))
        tensor([-200.0000,   -0.6931])

    See also: `FastBernoulli`.
    """
    below = (-logits).relu()
    return -(below + (1 + torch.where(logits < 0, logits, -logits).exp()).log())


class FastBernoulli(dist.Bernoulli):
    """A Bernoulli distribution with log density log sigmoid(+-logits), for a value of 1 or 0.

    The result is that of Pyro in a fraction of the time. Pyro computes a cross entropy, which also
    accepts values between 0 and 1.

    Args:
        probs: Probabilities of 1, or None.
        logits: Their logits, or None.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import FastBernoulli
        >>> coins = FastBernoulli(logits=torch.zeros(3)).to_event(1)
        >>> coins.log_prob(torch.tensor([1.0, 0.0, 1.0]))  # 3 log(1/2)
        tensor(-2.0794)

    See also: `pyro_vae.likelihoods.Bernoulli`, `ContinuousBernoulli`.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return log_sigmoid((2 * value - 1) * self.logits)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> dist.TorchDistribution:
        """Return the distribution with its last batch dimensions, by default all, as one event."""
        ndims = reinterpreted_batch_ndims
        ndims = len(self.batch_shape) if ndims is None else ndims
        return _BernoulliEvent(self, ndims) if ndims > 0 else super().to_event(ndims)


class _BernoulliEvent(dist.Independent):
    """A `FastBernoulli` with event dimensions; its log density takes few logarithms."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats."""
        if self._validate_args:
            self._validate_sample(value)
        margin = (2 * value - 1) * self.base_dist.logits
        ndims = self.reinterpreted_batch_ndims
        # An autograd function with rules for vmap and jvp takes 40 microseconds more in each call.
        if torch._C._are_functorch_transforms_active():
            return log_sigmoid(margin).flatten(-ndims).sum(-1)
        return _SumOfLogSigmoids.apply(margin, ndims)


class _SumOfLogSigmoids(torch.autograd.Function):
    """The sum of log sigmoid(m) = min(m, 0) + log sigmoid(|m|) over the last dimensions of m.

    The second term is at least log 1/2, so the product of `FACTORS` of its sigmoids does not
    underflow in float32, and one logarithm is enough for them. On a CPU a logarithm costs as much
    as thirty products.
    """

    FACTORS = 112  # 2^-112 is a normal float32, and 784 = 7 * 112

    @staticmethod
    def forward(ctx: FunctionCtx, margin: Tensor, ndims: int) -> Tensor:
        ctx.save_for_backward(margin)
        length = _SumOfLogSigmoids.FACTORS
        # The allocator can reuse the memory of clamp() for abs().
        linear = margin.clamp(max=0).flatten(-ndims).sum(-1)
        factors = margin.abs().sigmoid_().flatten(-ndims)
        even = factors.shape[-1] // length * length
        products = factors[..., :even].unflatten(-1, (-1, length)).prod(-1)
        rest = factors[..., even:].prod(-1)
        return linear + products.log().sum(-1) + rest.log()

    @staticmethod
    def backward(ctx: BackwardCFunction, gradient: Tensor) -> tuple[Tensor, None]:
        (margin,) = ctx.saved_tensors
        gradient = gradient.reshape(*gradient.shape, *(1,) * (margin.dim() - gradient.dim()))
        return gradient * torch.sigmoid(-margin), None


class ContinuousBernoulli(dist.TorchDistribution):
    """The density on [0, 1] proportional to e^(ηx): Loaiza-Ganem & Cunningham (2019).

    With λ = sigmoid(η) it is C(λ) λ^x (1-λ)^(1-x) of the paper. The mode is 1 if η >= 0, else 0.
    With s = |η| and d the distance of x from the mode,

        log p(x) = -s d - log (1 - e^(-s)) / s

    The class of torch computes the normalizer from λ, which float32 rounds to 1 for η above 16. Its
    log densities are then wrong by log(η/16), and the gradient of the normalizer is 0.

    Args:
        logits: Logits η, of shape batch_shape.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import ContinuousBernoulli
        >>> ContinuousBernoulli(torch.tensor(40.0)).log_prob(torch.tensor(1.0))  # log 40
        tensor(3.6889)

    See also: `pyro_vae.likelihoods.ContinuousBernoulli`, `FastBernoulli`.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        (self.logits,) = broadcast_all(logits)
        super().__init__(self.logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "ContinuousBernoulli":
        """Return the distribution with this batch_shape."""
        return type(self)(self.logits.expand(batch_shape), self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        slope = self._slope()
        small, near, safe = _near_zero(slope)
        series = near * (-1 / 2 + near * (1 / 24 - near**2 / 2880 * (1 - near**2 / 63)))
        # The slope is at least 0.1 here, so expm1, ten times as slow as exp, is not needed.
        log_normalizer = torch.where(small, series, ((1 - (-safe).exp()) / safe).log())
        return -slope * self._flip(value) - log_normalizer

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample by inverting the cumulative distribution function."""
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        small, near, safe = _near_zero(self._slope())
        # Above -1: for a steep density, a uniform of 1 would give an infinite distance.
        fall = (uniform * torch.expm1(-safe)).clamp(min=torch.finfo(uniform.dtype).eps - 1)
        distance = torch.log1p(fall) / -safe
        # -log(1 - u + u e^(-s)) / s is a series in s of the cumulants of a Bernoulli(u) variable.
        even, odd = uniform * (1 - uniform), 1 - 2 * uniform
        third, fourth, fifth = even * odd, even * (1 - 6 * even), even * odd * (1 - 12 * even)
        sixth = even * (1 - 30 * even + 120 * even**2)
        tail = third / 6 - near * (fourth / 24 - near * (fifth / 120 - near * sixth / 720))
        series = uniform - near * (even / 2 - near * tail)
        return self._flip(torch.where(small, series, distance).clamp(0, 1))

    @property
    def mean(self) -> Tensor:
        """E[x]."""
        small, near, safe = _near_zero(self._slope())
        series = 1 / 2 - near / 12 * (1 - near**2 / 60 * (1 - near**2 / 42))
        return self._flip(torch.where(small, series, 1 / safe - 1 / torch.expm1(safe)))

    @property
    def variance(self) -> Tensor:
        """Var[x]."""
        # The difference cancels in float32.
        (slope,) = in_float64(self._slope())
        small, near, safe = _near_zero(slope)
        series = 1 / 12 - near**2 / 240 * (1 - near**2 * 5 / 126)
        exact = safe**-2 - (2 * torch.sinh(safe / 2)) ** -2
        return like(torch.where(small, series, exact), self.logits)

    def _slope(self) -> Tensor:
        # The gradient of abs() is 0 at 0, which is a common initial value of a decoder.
        return torch.where(self.logits >= 0, self.logits, -self.logits)

    def _flip(self, value: Tensor) -> Tensor:
        """Map x to its distance from the mode; the map is its own inverse."""
        return torch.where(self.logits >= 0, 1 - value, value)


def _near_zero(slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a mask of slopes for which a series replaces 0/0, and the slopes for either form.

    The slopes for the series are 0 outside the mask, and the others are 1 at the mask:
    `torch.where` differentiates both branches, so the unused branch must be finite as well.
    """
    small = slope < 0.1
    return small, torch.where(small, slope, 0), torch.where(small, 1, slope)
