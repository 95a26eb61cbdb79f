"""Likelihoods of binary, categorical and integer-valued data."""

from typing import Annotated, TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae import distributions
from pyro_vae.arguments import Count, Positive, Whole
from pyro_vae.distributions.parameters import min_scale_of_levels
from pyro_vae.likelihoods.base import Decoder, Entrywise, PositiveParameter, Spread

NumLevels: TypeAlias = Annotated[int, Whole(2)]


class Bernoulli(Entrywise):
    """p(x|z) = prod_d Bernoulli(x_d; sigmoid(decoder(z)_d)), for x in {0, 1}.

    Kingma & Welling (2013), Appendix C.1. The support excludes grey values between 0 and 1, for
    which a Bernoulli density is not normalized. Binarize them (argument `binarize` of the
    datasets), or use a `ContinuousBernoulli`.

    Args:
        decoder: Network from `(*batch, latent_dim)` to logits `(*batch, *event_shape)`.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.Bernoulli(networks.MLP(3, [8], (1, 4, 4)))
        >>> likelihood(torch.zeros(5, 3)).sample().shape
        torch.Size([5, 1, 4, 4])

    See also: `ContinuousBernoulli`, `Categorical`.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder)

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a Bernoulli distribution for each entry."""
        return distributions.FastBernoulli(logits=outputs[..., 0])


class Categorical(Entrywise):
    """p(x|z) = prod_d Categorical(level of x_d), which assumes no order of the levels.

    The default levels are k/255, the pixel values of the datasets. For category codes 0, 1, 2, ...
    use `spacing=1`.

    Args:
        decoder: Network from z to logits, `num_levels` for each entry.
        num_levels: Number of levels.
        spacing: Distance between neighbouring levels in x. The default is 1/(num_levels - 1).

    Raises:
        ValueError: If `num_levels` is below 2.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> decoder = networks.MLP(3, [8], 4 * 5)
        >>> likelihood = likelihoods.Categorical(decoder, num_levels=4, spacing=1)
        >>> likelihood(torch.zeros(6, 3)).sample().shape
        torch.Size([6, 5])

    See also: `DiscretizedLogistic`, `Bernoulli`, `Columns`.
    """

    def __init__(
        self, decoder: Decoder, num_levels: NumLevels = 256, spacing: Positive | None = None
    ) -> None:
        super().__init__(decoder, num_levels)
        self.spacing = 1 / (num_levels - 1) if spacing is None else spacing

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a categorical distribution for each entry."""
        return distributions.CategoricalLevels(outputs, self.spacing)


class DiscretizedLogistic(Entrywise):
    """Pixels k/255 as rounded logistic variables: Kingma et al. (2016), Salimans et al. (2017).

    The score is a log probability of 8-bit pixels. It cannot be compared with a log density.

    Args:
        decoder: Network from z to loc and, if `scale="decoder"`, to scale.
        scale: Scale of the logistic density, as for `Normal`.
        num_levels: Number of levels 0, 1/(num_levels - 1), ..., 1.

    Raises:
        ValueError: If `num_levels` is below 2.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.DiscretizedLogistic(networks.MLP(3, [8], (2 * 1, 4, 4)))
        >>> likelihood(torch.zeros(5, 3)).sample().shape
        torch.Size([5, 1, 4, 4])

    See also: `DiscretizedLogisticMixture`, `Categorical`, `ContinuousBernoulli`.
    """

    scale: PositiveParameter

    def __init__(
        self, decoder: Decoder, scale: Spread = "decoder", num_levels: NumLevels = 256
    ) -> None:
        super().__init__(decoder, scale=(scale, min_scale_of_levels(num_levels)))
        self.num_levels = num_levels

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a discretized logistic distribution for each entry."""
        return distributions.DiscretizedLogistic(
            outputs[..., 0], self.scale(outputs), self.num_levels
        )


class DiscretizedLogisticMixture(Entrywise):
    """A mixture of discretized logistics for each pixel k/255: Salimans et al. (2017), eq. 1-2.

    In contrast to the paper, the channels of a colour image are independent given z.

    Args:
        decoder: Network from z to `3 * num_components` outputs for each entry: the logits of the
            components, their locs relative to centres spread over (0, 1), and their scales.
        num_components: Number of mixture components for each pixel.
        num_levels: Number of levels 0, 1/(num_levels - 1), ..., 1.

    Raises:
        ValueError: If `num_components` is below 1 or `num_levels` is below 2.

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> decoder = networks.MLP(3, [8], (3 * 2 * 1, 4, 4))
        >>> likelihood = likelihoods.DiscretizedLogisticMixture(decoder, num_components=2)
        >>> likelihood(torch.zeros(5, 3)).sample().shape
        torch.Size([5, 1, 4, 4])

    See also: `DiscretizedLogistic`, `Categorical`.
    """

    def __init__(
        self, decoder: Decoder, num_components: Count = 5, num_levels: NumLevels = 256
    ) -> None:
        super().__init__(decoder, 3 * num_components)
        self.num_components, self.num_levels = num_components, num_levels

    def entries(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return a mixture of discretized logistic distributions for each entry."""
        logits, shift, scale = outputs.chunk(3, dim=-1)
        index = torch.arange(self.num_components, dtype=shift.dtype, device=shift.device)
        # Components with equal initial values would receive equal gradients and stay equal.
        centres = (index + 0.5) / self.num_components
        return dist.MixtureSameFamily(
            dist.Categorical(logits=logits),
            distributions.DiscretizedLogistic(
                centres + shift,
                softplus(scale) + min_scale_of_levels(self.num_levels),
                self.num_levels,
            ),
        )
