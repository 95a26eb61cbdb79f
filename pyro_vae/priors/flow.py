"""A normalizing flow as a prior."""

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_vae.arguments import ArgumentError, Instance
from pyro_vae.distributions.transforms import (
    Reverse,
    TransformedDistribution,
    clear_caches,
    transform_named,
)
from pyro_vae.part import Part
from pyro_vae.priors.simple import AtLeastTwo

Step: TypeAlias = Annotated[
    str | Transform, Instance((str, Transform), "the name of a transform or a transform")
]


class Flow(Part):
    """A normalizing flow: transforms T map z to standard normal noise.

    p(z) = N(T(z); 0, I) |det dT/dz|, T = T_n after ... after T_1. The order of the latents is
    reversed between two transforms. `log_prob` takes one pass through T, sampling takes one pass
    through the inverse of T. An `"affine_autoregressive"` T is a masked autoregressive flow
    (Papamakarios et al. 2017), which samples one latent after the other. A `"spline_coupling"` T
    (Durkan et al. 2019) also samples in one pass.

    Args:
        latent_dim: Number of latent dimensions, at least 2.
        transforms: Names of transforms (keys of `pyro_vae.distributions.transforms.TRANSFORMS`),
            or transforms of vectors, such as those of Pyro. A transform object is trained, but a
            prior that contains one cannot be saved.

    Raises:
        ValueError: If `latent_dim` is below 2, a name is unknown, or there is no transform.

    Example:
        >>> from pyro_vae.priors import Flow
        >>> Flow(3, ["affine_coupling", "spline_coupling"])().sample((5,)).shape
        torch.Size([5, 3])

    See also: `MixtureOfGaussians`, `VampPrior`, `guides.Flow`.
    """

    zero: Tensor
    one: Tensor

    def __init__(
        self,
        latent_dim: AtLeastTwo,
        transforms: Sequence[Step] = ("spline_coupling", "affine_autoregressive"),
    ) -> None:
        super().__init__()
        if not transforms:
            raise ArgumentError("Flow needs at least one transform, got none")
        built = [transform_named(t, latent_dim) if isinstance(t, str) else t for t in transforms]
        self.transforms = [built[0]]
        for transform in built[1:]:
            self.transforms += [Reverse(), transform]
        self.learned = nn.ModuleList(t for t in built if isinstance(t, nn.Module))
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("one", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        clear_caches(self)
        noise = dist.Normal(self.zero, self.one).to_event(1)
        return TransformedDistribution(noise, [t.inv for t in reversed(self.transforms)])

    def __getstate__(self) -> object:
        clear_caches(self)
        return super().__getstate__()
