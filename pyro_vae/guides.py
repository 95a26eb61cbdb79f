"""Guides: `guide(x)` returns q(z given x), the amortized approximate posterior.

Its batch_shape is that of the data and its event_shape `(latent_dim,)`. The encoder, a network
from x to the distribution's parameters, is an argument.
"""

from collections.abc import Callable

import pyro.distributions as dist
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae.parts import Part

Encoder = Callable[[Tensor], Tensor]


class DiagonalNormal(Part):
    """q(z|x) = N(z; loc(x), diag scale(x)^2): Kingma & Welling (2013), eq. 9.

    The encoder's first half is `loc`, its second half is `scale` through a softplus, which grows
    linearly where the paper's exp(log variance / 2) explodes.

    Args:
        encoder: network from `(*batch, *event)` to `(*batch, 2 * latent_dim)`.

    Raises:
        ValueError: when the encoder's output size is odd.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        out_shape = getattr(encoder, "out_shape", None)
        if out_shape is not None and (len(out_shape) != 1 or out_shape[0] % 2):
            raise ValueError(
                "DiagonalNormal needs an encoder whose output is (2 * latent_dim,), a loc and a "
                f"scale for each latent; got {tuple(out_shape)}"
            )

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        loc, scale = self.encoder(x).chunk(2, dim=-1)
        return dist.Normal(loc, softplus(scale) + MIN_SCALE).to_event(1)


# Far below any posterior scale that matters, far above where float32 densities overflow.
MIN_SCALE = 1e-6
