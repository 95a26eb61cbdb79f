"""Likelihoods of real, positive and (0, 1)-valued data."""

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.likelihoods.base import MIN_SCALE, Decoder, Entrywise, PositiveParameter, Spread


class ContinuousBernoulli(Entrywise):
    """The Bernoulli form made a density on [0, 1]: Loaiza-Ganem & Cunningham (2019).

    Args:
        decoder: network from `(*batch, latent_dim)` to logits `(*batch, *event_shape)`. They are
            not those of E[x|z], which lies nearer to 1/2 than their sigmoid.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder)

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a continuous Bernoulli for every entry."""
        return distributions.ContinuousBernoulli(outputs[..., 0])


class Normal(Entrywise):
    """p(x|z) = N(x; loc(z), scale^2), for real x: Kingma & Welling (2013), Appendix C.2.

    With a linear decoder and one learned scale this is probabilistic PCA (Tipping & Bishop 1999),
    with an entrywise one factor analysis.

    Args:
        decoder: network to loc, and to scale where that is `"decoder"`: out_shape `event_shape`,
            or twice as many along its first dimension.
        scale: a number, `"learned"`, `"entrywise"` or `"decoder"`; what is learned stays above
            `MIN_SCALE`.
        sigmoid_mean: squeeze loc into (0, 1), as the paper does for its Frey faces.
    """

    scale: PositiveParameter

    def __init__(
        self, decoder: Decoder, scale: Spread = "learned", sigmoid_mean: bool = False
    ) -> None:
        super().__init__(decoder, scale=(scale, MIN_SCALE))
        self.sigmoid_mean = sigmoid_mean

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a normal distribution for every entry."""
        loc = outputs[..., 0].sigmoid() if self.sigmoid_mean else outputs[..., 0]
        return dist.Normal(loc, self.scale(outputs))


class Laplace(Entrywise):
    """p(x|z) = Laplace(x; loc(z), scale), for real x with more outliers than a normal has.

    Args:
        decoder: network to loc, and to scale where that is `"decoder"`.
        scale: as for `Normal`.
    """

    scale: PositiveParameter

    def __init__(self, decoder: Decoder, scale: Spread = "learned") -> None:
        super().__init__(decoder, scale=(scale, MIN_SCALE))

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a Laplace distribution for every entry."""
        return dist.Laplace(outputs[..., 0], self.scale(outputs))


class StudentT(Entrywise):
    """p(x|z) = StudentT(x; df, loc(z), scale), for real x with heavy tails.

    Args:
        decoder: network to loc, and to those of scale and df, in this order, that are `"decoder"`.
        scale: as for `Normal`.
        df: degrees of freedom, likewise; what is learned stays above 1, where E[x|z] exists.
    """

    scale: PositiveParameter
    df: PositiveParameter

    def __init__(self, decoder: Decoder, scale: Spread = "learned", df: Spread = "learned") -> None:
        super().__init__(decoder, scale=(scale, MIN_SCALE), df=(df, 1.0))

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a Student t distribution for every entry."""
        return dist.StudentT(self.df(outputs), outputs[..., 0], self.scale(outputs))


class LogNormal(Entrywise):
    """p(log x|z) = N(log x; loc(z), scale^2), for x > 0 such as incomes, prices and durations.

    Args:
        decoder: network to loc, and to scale where that is `"decoder"`.
        scale: of log x; as for `Normal`.
    """

    scale: PositiveParameter

    def __init__(self, decoder: Decoder, scale: Spread = "learned") -> None:
        super().__init__(decoder, scale=(scale, MIN_SCALE))

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a log-normal distribution for every entry."""
        return dist.LogNormal(outputs[..., 0], self.scale(outputs))


class Beta(Entrywise):
    """p(x|z) = Beta(x; c m, c (1 - m)) with mean m = sigmoid(decoder(z)), for 0 < x < 1.

    The ends 0 and 1, where the density is 0 or infinite, are outside its support. Rates that
    contain them can be moved inside, by (x (N - 1) + 1/2) / N for N data (Smithson & Verkuilen
    2006); pixels want a `DiscretizedLogistic`.

    Args:
        decoder: network to the logits of m, and to c where that is `"decoder"`.
        concentration: c, a number, `"learned"`, `"entrywise"` or `"decoder"`: the variance is
            m (1 - m) / (1 + c).
    """

    concentration: PositiveParameter

    def __init__(self, decoder: Decoder, concentration: Spread = "learned") -> None:
        super().__init__(decoder, concentration=(concentration, 1e-3))

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a beta distribution for every entry."""
        logits, concentration = outputs[..., 0], self.concentration(outputs)
        # 1 - sigmoid(logits) would round to 0 where sigmoid(-logits) does not.
        smallest = torch.finfo(logits.dtype).tiny
        return distributions.OpenBeta(
            (concentration * logits.sigmoid()).clamp(min=smallest),
            (concentration * (-logits).sigmoid()).clamp(min=smallest),
        )
