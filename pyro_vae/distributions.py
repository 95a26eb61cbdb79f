"""Distributions that Pyro lacks, or has in a form that float32 breaks."""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import ExpandedDistribution
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


class Bits(dist.Bernoulli):
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
    """The `Bits` of an event, whose log density takes few logarithms."""

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


class Mixture(dist.MixtureSameFamily):
    """A mixture whose log density, of diagonal normal components, is a matrix product.

    With the precisions p_k = 1 / scale_k^2 of K components

        sum_d p_kd (z_d - loc_kd)^2 = z^2 . p_k - 2 z . (loc_k p_k) + loc_k^2 . p_k

    for all z at once, where torch's goes through a tensor of draws x K x dimensions several times.
    The three terms cancel where a component is narrow: they are float64, whatever the arguments.
    """

    def expand(self, batch_shape: Any, _instance: Any = None) -> dist.TorchDistribution:
        """Return the distribution with this batch_shape; the components are not copied."""
        return ExpandedDistribution(self, torch.Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        components = self.component_distribution
        normal = getattr(components, "base_dist", None)
        plain = (
            getattr(components, "reinterpreted_batch_ndims", None) == 1
            and isinstance(normal, torch.distributions.Normal)
            and type(normal).log_prob is torch.distributions.Normal.log_prob
        )
        # There is no float64 on mps.
        if self.batch_shape or not plain or value.device.type == "mps":
            return super().log_prob(value)
        if self._validate_args:
            self._validate_sample(value)
        assert normal is not None
        z, loc, scale = value.double(), normal.loc.double(), normal.scale.double()
        precision = scale**-2
        squares = torch.cat([z**2, z], -1) @ torch.cat([precision, -2 * loc * precision], -1).T
        constant = (loc**2 * precision + 2 * scale.log() + math.log(2 * math.pi)).sum(-1)
        log_densities = (-(squares + constant) / 2).to(normal.loc.dtype)
        return (log_densities + self.mixture_distribution.logits).logsumexp(-1)


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


class Levels(constraints.Constraint):
    """The evenly spaced values 0, spacing, 2 spacing, ..., up to rounding of float32."""

    is_discrete = True

    def __init__(self, num_levels: int, spacing: float) -> None:
        self.num_levels, self.spacing = num_levels, spacing

    def check(self, value: Tensor) -> Tensor:
        """Return which values lie on a level."""
        level = value / self.spacing
        near = (level - level.round()).abs() < 1e-3
        return near & (level.round() >= 0) & (level.round() < self.num_levels)

    def __repr__(self) -> str:
        top = (self.num_levels - 1) * self.spacing
        return f"{self.num_levels} levels from 0 to {top:g}, {self.spacing:g} apart"


class CategoricalLevels(dist.TorchDistribution):
    """A categorical distribution over the values 0, spacing, ..., (num_levels - 1) spacing.

    Args:
        logits: unnormalized log probabilities, shape `(*batch_shape, num_levels)`.
        spacing: distance between neighbouring levels.
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012

    def __init__(
        self, logits: Tensor, spacing: float = 1.0, validate_args: bool | None = None
    ) -> None:
        self.logits, self.spacing = logits, spacing
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @property
    def support(self) -> Levels:
        """The levels."""
        return Levels(self.logits.shape[-1], self.spacing)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "CategoricalLevels":
        """Return the distribution with this batch_shape."""
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        return type(self)(logits, self.spacing, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self._categorical.log_prob((value / self.spacing).round())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values, in the float type of the logits."""
        draws = self._categorical.sample(torch.Size(sample_shape))
        return draws.to(self.logits.dtype) * self.spacing

    @property
    def mean(self) -> Tensor:
        """E[x]; of little meaning where the levels are mere codes."""
        return self.logits.softmax(-1) @ self._values

    @property
    def variance(self) -> Tensor:
        """Var[x]."""
        return self.logits.softmax(-1) @ self._values**2 - self.mean**2

    @property
    def _categorical(self) -> dist.Categorical:
        return dist.Categorical(logits=self.logits, validate_args=False)

    @property
    def _values(self) -> Tensor:
        num_levels = self.logits.shape[-1]
        indices = torch.arange(num_levels, dtype=self.logits.dtype, device=self.logits.device)
        return indices * self.spacing


class DiscretizedLogistic(dist.TorchDistribution):
    """A logistic distribution rounded to evenly spaced levels in [0, 1]: Salimans et al. (2017).

    A level's probability is that of the reals nearest to it; the two at the ends also have all
    beyond, so that the sum telescopes to one. With a < b the ends of a level's bin, standardized,

        sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^(a-b))

    loses no digits in either tail, where the difference itself would be 0.

    Args:
        loc: location, in the units of x.
        scale: scale of the logistic density, of a shape that broadcasts with it.
        num_levels: the levels are 0, 1/(num_levels - 1), ..., 1.
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real,
        "scale": constraints.positive,
    }

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        num_levels: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.num_levels = num_levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def support(self) -> Levels:
        """The levels."""
        return Levels(self.num_levels, 1 / (self.num_levels - 1))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiscretizedLogistic":
        """Return the distribution with this batch_shape."""
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return type(self)(loc, scale, self.num_levels, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats."""
        if self._validate_args:
            self._validate_sample(value)
        last = self.num_levels - 1
        level = (value * last).round()
        below = log_sigmoid(((level + 0.5) / last - self.loc) / self.scale)
        above = log_sigmoid((self.loc - (level - 0.5) / last) / self.scale)
        both = (-torch.expm1(-1 / (last * self.scale))).log()
        inner = torch.where(level == 0, below, below + above + both)
        return torch.where(level == last, above, inner)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw from the logistic distribution and round."""
        shape = self._extended_shape(torch.Size(sample_shape))
        last = self.num_levels - 1
        with torch.no_grad():
            noise = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).logit(1e-7)
            return ((self.loc + self.scale * noise) * last).round().clamp(0, last) / last

    @property
    def mean(self) -> Tensor:
        """E[x]."""
        return self._tail_sum(lambda k: 1.0) / (self.num_levels - 1)

    @property
    def variance(self) -> Tensor:
        """Var[x]."""
        second = self._tail_sum(lambda k: 2.0 * k - 1) / (self.num_levels - 1) ** 2
        return second - self.mean**2

    def _tail_sum(self, weight: Callable[[int], float]) -> Tensor:
        """Return the sum over k of weight(k) P(level >= k): E[level] for weight 1."""
        total = torch.zeros_like(self.loc)
        last = self.num_levels - 1
        for k in range(1, self.num_levels):  # one at a time: all at once would be 256 images
            total = total + weight(k) * ((self.loc - (k - 0.5) / last) / self.scale).sigmoid()
        return total


class _OpenUnitInterval(constraints.Constraint):
    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)


class OpenBeta(dist.Beta):
    """Pyro's Beta with the ends 0 and 1, where its density is 0 or infinite, off its support."""

    support = _OpenUnitInterval()  # type: ignore[assignment]  # torch's closed interval


class ZeroInflatedNegativeBinomial(dist.ZeroInflatedNegativeBinomial):
    """Pyro's, which refuses to be expanded once it was sampled or its mean was taken."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ZeroInflatedNegativeBinomial":
        """Return the distribution with this batch_shape."""
        return type(self)(
            self.total_count.expand(batch_shape),
            logits=self.logits.expand(batch_shape),
            gate_logits=self.gate_logits.expand(batch_shape),
            validate_args=self._validate_args,
        )


def entries_of(distribution: dist.TorchDistribution) -> dist.TorchDistribution:
    """Return the distribution of single entries behind one of whole observations.

    Its batch_shape is batch_shape and event_shape of the other, its event_shape `()`.

    Raises:
        ValueError: when the entries are not independent of each other.
    """
    entries = distribution
    while isinstance(entries, dist.Independent):
        entries = entries.base_dist
    if entries.event_shape:
        raise ValueError(
            f"the entries of a {type(entries).__name__} depend on each other, where a product over "
            "entries is needed: one distribution for each, made an observation by .to_event()"
        )
    return entries
