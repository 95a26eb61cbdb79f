"""Missing values: NaN entries of x, which say nothing about the latents and are imputed from them.

Where the entries of x are independent given z, those that are missing at random integrate out of
p(x|z) and leave the product over the observed ones. The bound is then one on log p(x_observed).
"""

from collections.abc import Callable

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.distributions.entrywise import PartlyObserved, entries_of
from pyro_vae.part import Part


class Missing(Part):
    """p(x_observed|z): any likelihood that is a product over entries, with NaN entries left out.

    `VAE.impute` fills them in. The guide's encoder must know about NaN, too: see
    `networks.WithMask`.

    Args:
        likelihood: p(x|z); its draws and moments are those of complete observations. Each entry's
            support contains 0 or 1/2.

    Raises:
        ValueError: when called, where the likelihood's entries depend on each other.
    """

    def __init__(self, likelihood: Callable[[Tensor], dist.TorchDistribution]) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z), batch_shape `z.shape[:-1]`, event_shape that of one observation."""
        complete = self.likelihood(z)
        return PartlyObserved(entries_of(complete)).to_event(len(complete.event_shape))
