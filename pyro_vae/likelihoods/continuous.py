"""Likelihoods of real, positive and (0, 1)-valued data."""

from collections.abc import Sequence
from typing import TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import ArgumentError, Finite, Positive
from pyro_vae.distributions.parameters import (
    MIN_BETA_CONCENTRATION,
    MIN_DF,
    MIN_LIKELIHOOD_SCALE,
)
from pyro_vae.likelihoods.base import Decoder, Entrywise, PositiveParameter, Spread

Shift: TypeAlias = Finite | Sequence[Finite]
Unit: TypeAlias = Positive | Sequence[Positive]


class ContinuousBernoulli(Entrywise):
    """The continuous Bernoulli density on [0, 1]: Loaiza-Ganem & Cunningham (2019).

    Args:
        decoder: Network from `(*batch, latent_dim)` to logits `(*batch, *event_shape)`. E[x|z] is
            nearer to 1/2 than the sigmoid of the logits.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.ContinuousBernoulli(networks.MLP(3, [8], (1, 4, 4)))
        >>> likelihood(torch.zeros(5, 3)).sample().shape
        torch.Size([5, 1, 4, 4])

    See also: `Beta`, `Bernoulli`, `DiscretizedLogistic`.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder)

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a continuous Bernoulli distribution for each entry."""
        return distributions.ContinuousBernoulli(outputs[..., 0])


class LocationScale(Entrywise):
    """Base class of likelihoods of real x with a loc and a scale, in the unit of the data.

    loc = shift + unit * (decoder output). Learned scales are multiples of the unit, and so is their
    lower bound, `MIN_LIKELIHOOD_SCALE`. The density is one of x in its original unit.

    Args:
        decoder: Network from z to the outputs for loc, then for scale and the other parameters.
        scale: Scale: a number in the unit of x, `"learned"`, `"entrywise"` or `"decoder"`.
        shift: Origin of x, such as its mean: a number, or one for each entry of a vector x.
        unit: Unit of x, such as its standard deviation: a positive number, or one for each entry.
        positive: `Spread` and smallest learned value of each other positive parameter.

    Raises:
        ArgumentError: If `shift` or `unit` does not have one number for each entry.
    """

    scale: PositiveParameter
    shift: Tensor | None
    unit: Tensor | None

    def __init__(
        self,
        decoder: Decoder,
        scale: Spread,
        shift: Shift | None,
        unit: Unit | None,
        **positive: tuple[Spread, float],
    ) -> None:
        super().__init__(decoder, 1, scale=(scale, MIN_LIKELIHOOD_SCALE), **positive)
        out_shape = getattr(decoder, "out_shape", None)
        for name, given in (("shift", shift), ("unit", unit)):
            # The constructor arguments restore them, so they are not saved with the weights.
            value = None if given is None else torch.tensor(given)
            self.register_buffer(name, value, persistent=False)
            if value is not None and value.dim() and out_shape is not None:
                event_shape = self._event_shape(out_shape)
                if tuple(value.shape) != event_shape:
                    raise ArgumentError(
                        f"{name} must be a number or have one for each entry of x, of shape "
                        f"{event_shape}, got {len(value)}"
                    )

    def loc_and_scale(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return loc and scale of the entries in the unit of x."""
        loc, scale = self.loc(outputs), self.scale(outputs)
        if self.unit is not None:
            loc = self.unit * loc
            # A given number is in the unit of x already.
            scale = self.unit * scale if isinstance(self.scale.given, str) else scale
        return (loc if self.shift is None else self.shift + loc), scale

    def loc(self, outputs: Tensor) -> Tensor:
        """Return loc of the entries before `shift` and `unit`."""
        return outputs[..., 0]


class Normal(LocationScale):
    """p(x|z) = N(x; loc(z), scale^2), for real x: Kingma & Welling (2013), Appendix C.2.

    With a linear decoder and one learned scale the model is probabilistic PCA (Tipping & Bishop
    1999). With a linear decoder and an entrywise scale it is factor analysis.

    Args:
        decoder: Network from z to loc and, if `scale="decoder"`, to scale. Its out_shape is
            `event_shape`, or twice as long along the first dimension.
        scale: Scale: a number, `"learned"`, `"entrywise"` or `"decoder"`. Learned scales are at
            least `MIN_LIKELIHOOD_SCALE` times the unit.
        sigmoid_mean: Whether a sigmoid maps loc to (0, 1), as in the Frey face model of the paper.
        shift: Origin of x, such as the means of its columns: a number, or one for each entry of a
            vector x. loc = shift + unit * (decoder output).
        unit: Unit of x, such as the standard deviations of its columns. Learned scales are
            multiples of it, and log p(x|z) is a density of x in its original unit. Let the encoder
            standardize x by the same numbers: see `networks.Standardized`.

    Raises:
        ValueError: If `shift` or `unit` does not have one number for each entry.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.Normal(networks.MLP(3, [8], 2 * 5), scale="decoder")
        >>> likelihood(torch.zeros(4, 3)).sample().shape
        torch.Size([4, 5])

    See also: `Laplace`, `StudentT`, `LogNormal`.
    """

    def __init__(
        self,
        decoder: Decoder,
        scale: Spread = "learned",
        sigmoid_mean: bool = False,
        shift: Shift | None = None,
        unit: Unit | None = None,
    ) -> None:
        super().__init__(decoder, scale, shift, unit)
        self.sigmoid_mean = sigmoid_mean

    def loc(self, outputs: Tensor) -> Tensor:
        """Return loc of the entries before `shift` and `unit`."""
        return outputs[..., 0].sigmoid() if self.sigmoid_mean else outputs[..., 0]

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a normal distribution for each entry."""
        return distributions.Normal(*self.loc_and_scale(outputs))


class Laplace(LocationScale):
    """p(x|z) = Laplace(x; loc(z), scale), for real x with more outliers than a normal has.

    Args:
        decoder: Network from z to loc and, if `scale="decoder"`, to scale.
        scale: Scale, as for `Normal`.
        shift: Origin of x, as for `Normal`.
        unit: Unit of x, as for `Normal`.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.Laplace(networks.MLP(3, [8], 5), scale=0.5)
        >>> likelihood(torch.zeros(4, 3)).sample().shape
        torch.Size([4, 5])

    See also: `Normal`, `StudentT`.
    """

    def __init__(
        self,
        decoder: Decoder,
        scale: Spread = "learned",
        shift: Shift | None = None,
        unit: Unit | None = None,
    ) -> None:
        super().__init__(decoder, scale, shift, unit)

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a Laplace distribution for each entry."""
        return dist.Laplace(*self.loc_and_scale(outputs))


class StudentT(LocationScale):
    """p(x|z) = StudentT(x; df, loc(z), scale), for real x with heavy tails.

    Args:
        decoder: Network from z to loc, then to scale and to df if they are `"decoder"`.
        scale: Scale, as for `Normal`.
        df: Degrees of freedom: a number, `"learned"`, `"entrywise"` or `"decoder"`. Learned values
            are above 1, so E[x|z] exists.
        shift: Origin of x, as for `Normal`.
        unit: Unit of x, as for `Normal`.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.StudentT(networks.MLP(3, [8], 5), df=4.0)
        >>> likelihood(torch.zeros(4, 3)).sample().shape
        torch.Size([4, 5])

    See also: `Normal`, `Laplace`.
    """

    df: PositiveParameter

    def __init__(
        self,
        decoder: Decoder,
        scale: Spread = "learned",
        df: Spread = "learned",
        shift: Shift | None = None,
        unit: Unit | None = None,
    ) -> None:
        super().__init__(decoder, scale, shift, unit, df=(df, MIN_DF))

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a Student t distribution for each entry."""
        return distributions.StudentT(self.df(outputs), *self.loc_and_scale(outputs))


class LogNormal(LocationScale):
    """p(log x|z) = N(log x; loc(z), scale^2), for x > 0 such as incomes, prices and durations.

    Args:
        decoder: Network from z to loc and, if `scale="decoder"`, to scale.
        scale: Scale of log x, as for `Normal`.
        shift: Origin of log x, such as its mean, as for `Normal`.
        unit: Unit of log x, such as its standard deviation, as for `Normal`.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.LogNormal(networks.MLP(3, [8], 5))
        >>> likelihood(torch.zeros(4, 3)).sample().shape
        torch.Size([4, 5])

    See also: `Normal`, `NegativeBinomial`.
    """

    def __init__(
        self,
        decoder: Decoder,
        scale: Spread = "learned",
        shift: Shift | None = None,
        unit: Unit | None = None,
    ) -> None:
        super().__init__(decoder, scale, shift, unit)

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a log-normal distribution for each entry."""
        return distributions.LogNormal(*self.loc_and_scale(outputs))


class Beta(Entrywise):
    """p(x|z) = Beta(x; c m, c (1 - m)) with mean m = sigmoid(decoder(z)), for 0 < x < 1.

    The support excludes 0 and 1, at which the density is 0 or infinite. Map rates that contain 0 or
    1 to the open interval by (x (N - 1) + 1/2) / N for N data (Smithson & Verkuilen 2006). Use a
    `DiscretizedLogistic` for pixels.

    Args:
        decoder: Network from z to the logits of m and, if `concentration="decoder"`, to c.
        concentration: Concentration c: a number, `"learned"`, `"entrywise"` or `"decoder"`. The
            variance is m (1 - m) / (1 + c).

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.Beta(networks.MLP(3, [8], 5), concentration=10.0)
        >>> likelihood(torch.zeros(4, 3)).sample().shape
        torch.Size([4, 5])

    See also: `ContinuousBernoulli`, `DiscretizedLogistic`.
    """

    concentration: PositiveParameter

    def __init__(self, decoder: Decoder, concentration: Spread = "learned") -> None:
        super().__init__(decoder, concentration=(concentration, MIN_BETA_CONCENTRATION))

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a beta distribution for each entry."""
        return distributions.Beta(outputs[..., 0], self.concentration(outputs))
