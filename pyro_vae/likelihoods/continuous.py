"""Likelihoods of real, positive and (0, 1)-valued data."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.distributions.parameters import (
    MIN_BETA_CONCENTRATION,
    MIN_DF,
    MIN_LIKELIHOOD_SCALE,
)
from pyro_vae.likelihoods.base import Decoder, Entrywise, PositiveParameter, Spread


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


class Normal(Entrywise):
    """p(x|z) = N(x; loc(z), scale^2), for real x: Kingma & Welling (2013), Appendix C.2.

    With a linear decoder and one learned scale the model is probabilistic PCA (Tipping & Bishop
    1999). With a linear decoder and an entrywise scale it is factor analysis.

    Args:
        decoder: Network from z to loc and, if `scale="decoder"`, to scale. Its out_shape is
            `event_shape`, or twice as long along the first dimension.
        scale: Scale: a number, `"learned"`, `"entrywise"` or `"decoder"`. Learned scales are at
            least `MIN_LIKELIHOOD_SCALE`.
        sigmoid_mean: Whether a sigmoid maps loc to (0, 1), as in the Frey face model of the paper.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.Normal(networks.MLP(3, [8], 2 * 5), scale="decoder")
        >>> likelihood(torch.zeros(4, 3)).sample().shape
        torch.Size([4, 5])

    See also: `Laplace`, `StudentT`, `LogNormal`.
    """

    scale: PositiveParameter

    def __init__(
        self, decoder: Decoder, scale: Spread = "learned", sigmoid_mean: bool = False
    ) -> None:
        super().__init__(decoder, scale=(scale, MIN_LIKELIHOOD_SCALE))
        self.sigmoid_mean = sigmoid_mean

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a normal distribution for each entry."""
        loc = outputs[..., 0].sigmoid() if self.sigmoid_mean else outputs[..., 0]
        return distributions.Normal(loc, self.scale(outputs))


class Laplace(Entrywise):
    """p(x|z) = Laplace(x; loc(z), scale), for real x with more outliers than a normal has.

    Args:
        decoder: Network from z to loc and, if `scale="decoder"`, to scale.
        scale: Scale, as for `Normal`.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.Laplace(networks.MLP(3, [8], 5), scale=0.5)
        >>> likelihood(torch.zeros(4, 3)).sample().shape
        torch.Size([4, 5])

    See also: `Normal`, `StudentT`.
    """

    scale: PositiveParameter

    def __init__(self, decoder: Decoder, scale: Spread = "learned") -> None:
        super().__init__(decoder, scale=(scale, MIN_LIKELIHOOD_SCALE))

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a Laplace distribution for each entry."""
        return dist.Laplace(outputs[..., 0], self.scale(outputs))


class StudentT(Entrywise):
    """p(x|z) = StudentT(x; df, loc(z), scale), for real x with heavy tails.

    Args:
        decoder: Network from z to loc, then to scale and to df if they are `"decoder"`.
        scale: Scale, as for `Normal`.
        df: Degrees of freedom: a number, `"learned"`, `"entrywise"` or `"decoder"`. Learned values
            are above 1, so E[x|z] exists.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.StudentT(networks.MLP(3, [8], 5), df=4.0)
        >>> likelihood(torch.zeros(4, 3)).sample().shape
        torch.Size([4, 5])

    See also: `Normal`, `Laplace`.
    """

    scale: PositiveParameter
    df: PositiveParameter

    def __init__(self, decoder: Decoder, scale: Spread = "learned", df: Spread = "learned") -> None:
        super().__init__(decoder, scale=(scale, MIN_LIKELIHOOD_SCALE), df=(df, MIN_DF))

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a Student t distribution for each entry."""
        return distributions.StudentT(self.df(outputs), outputs[..., 0], self.scale(outputs))


class LogNormal(Entrywise):
    """p(log x|z) = N(log x; loc(z), scale^2), for x > 0 such as incomes, prices and durations.

    Args:
        decoder: Network from z to loc and, if `scale="decoder"`, to scale.
        scale: Scale of log x, as for `Normal`.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.LogNormal(networks.MLP(3, [8], 5))
        >>> likelihood(torch.zeros(4, 3)).sample().shape
        torch.Size([4, 5])

    See also: `Normal`, `NegativeBinomial`.
    """

    scale: PositiveParameter

    def __init__(self, decoder: Decoder, scale: Spread = "learned") -> None:
        super().__init__(decoder, scale=(scale, MIN_LIKELIHOOD_SCALE))

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a log-normal distribution for each entry."""
        return distributions.LogNormal(outputs[..., 0], self.scale(outputs))


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
