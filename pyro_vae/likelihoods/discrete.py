"""Likelihoods of binary, categorical and integer-valued data."""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae import distributions
from pyro_vae.likelihoods.base import MIN_SCALE, Decoder, Entrywise, PositiveParameter, Spread


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
        return distributions.FastBernoulli(logits=outputs[..., 0])


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
