"""Likelihoods: `likelihood(z)` returns p(x given z), one distribution per latent.

Its batch_shape is `z.shape[:-1]` and its event_shape that of one observation. The decoder, a
network from z to the distribution's parameters, is an argument.

Where an entry of x takes several outputs of the decoder, a loc and a scale for instance, they are
stacked along the first dimension of the event, all of one kind before those of the next: for K
outputs an entry, the decoder's out_shape is `(K * event_shape[0], *event_shape[1:])`. To a
convolutional decoder these are more channels, to a fully connected one more units.

Counts, tables of mixed columns and missing values have files of their own (`counts.py`,
`tables.py`, `missing.py`); their names are here, too.
"""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae import distributions
from pyro_vae.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyro_vae.entrywise import MIN_SCALE, Decoder, Entrywise, PositiveParameter, Spread
from pyro_vae.missing import Missing
from pyro_vae.tables import Columns

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "Columns",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Laplace",
    "LogNormal",
    "Missing",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]


class Bernoulli(Entrywise):
    """p(x|z) = prod_d Bernoulli(x_d; sigmoid(decoder(z)_d)), for x in {0, 1}.

    Kingma & Welling (2013), Appendix C.1. Grey values between 0 and 1 are outside its support: a
    Bernoulli density of them is not normalized. Binarize them (`binarize=` of the data sets), or
    take a `ContinuousBernoulli`.

    Args:
        decoder: network from `(*batch, latent_dim)` to logits `(*batch, *event_shape)`.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder)

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a Bernoulli for every entry."""
        return distributions.Bits(logits=outputs[..., 0])


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


class Categorical(Entrywise):
    """p(x|z) = prod_d Categorical(level of x_d), free of any order among the levels.

    Pixels are levels k/255, as the data sets give them: that is the default. Category codes 0, 1,
    2, ... are levels with a spacing of 1.

    Args:
        decoder: network to logits, `num_levels` of them for each entry.
        num_levels: how many levels there are.
        spacing: distance between neighbouring levels in x, 1/(num_levels - 1) by default.

    Raises:
        ValueError: for fewer than 2 levels.
    """

    def __init__(
        self, decoder: Decoder, num_levels: int = 256, spacing: float | None = None
    ) -> None:
        _check_levels(num_levels)
        super().__init__(decoder, num_levels)
        self.spacing = 1 / (num_levels - 1) if spacing is None else spacing

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a categorical distribution for every entry."""
        return distributions.CategoricalLevels(outputs, self.spacing)


class DiscretizedLogistic(Entrywise):
    """Pixels k/255 as a rounded logistic variable: Kingma et al. (2016), Salimans et al. (2017).

    A probability of 8-bit pixels, and so not to be compared with a density of them.

    Args:
        decoder: network to loc, and to scale where that is `"decoder"`.
        scale: of the logistic density; as for `Normal`.
        num_levels: the levels are 0, 1/(num_levels - 1), ..., 1.

    Raises:
        ValueError: for fewer than 2 levels.
    """

    scale: PositiveParameter

    def __init__(self, decoder: Decoder, scale: Spread = "decoder", num_levels: int = 256) -> None:
        _check_levels(num_levels)
        super().__init__(decoder, scale=(scale, MIN_SCALE))
        self.num_levels = num_levels

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a discretized logistic distribution for every entry."""
        return distributions.DiscretizedLogistic(
            outputs[..., 0], self.scale(outputs), self.num_levels
        )


class DiscretizedLogisticMixture(Entrywise):
    """A mixture of discretized logistics for each pixel k/255: Salimans et al. (2017), eq. 1-2.

    Unlike theirs, the channels of a colour image are independent given z.

    Args:
        decoder: network to `3 * num_components` outputs for each entry: the components' logits,
            then their locs, relative to centres spread over (0, 1), then their scales.
        num_components: how many logistics each pixel mixes.
        num_levels: the levels are 0, 1/(num_levels - 1), ..., 1.

    Raises:
        ValueError: for no component or fewer than 2 levels.
    """

    def __init__(self, decoder: Decoder, num_components: int = 5, num_levels: int = 256) -> None:
        _check_levels(num_levels)
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, got {num_components}")
        super().__init__(decoder, 3 * num_components)
        self.num_components, self.num_levels = num_components, num_levels

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a mixture of discretized logistics for every entry."""
        logits, shift, scale = outputs.chunk(3, dim=-1)
        index = torch.arange(self.num_components, dtype=shift.dtype, device=shift.device)
        centres = (index + 0.5) / self.num_components  # components that start alike stay alike
        return dist.MixtureSameFamily(
            dist.Categorical(logits=logits),
            distributions.DiscretizedLogistic(
                centres + shift, softplus(scale) + MIN_SCALE, self.num_levels
            ),
        )


def _check_levels(num_levels: int) -> None:
    if num_levels < 2:
        raise ValueError(f"num_levels must be at least 2, got {num_levels}")
