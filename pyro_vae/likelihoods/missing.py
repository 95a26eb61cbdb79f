"""A likelihood for data with missing entries, which are NaN.

If the entries of x are independent given z and missing at random, the missing ones integrate out of
p(x|z), and the product over the observed entries remains. The ELBO is then a bound on
log p(x_observed).
"""

from collections.abc import Callable
from typing import Annotated, TypeAlias

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.distributions.entrywise import PartlyObserved, entries_of
from pyro_vae.part import Part, Role

Complete: TypeAlias = Annotated[
    Callable[[Tensor], dist.TorchDistribution], Role("likelihood", ("z",))
]


class Missing(Part):
    """p(x_observed|z): a likelihood that is a product over entries, without the NaN entries.

    `VAE.impute` samples the missing entries. The encoder of the guide must also accept NaN: see
    `networks.WithMask`.

    Args:
        likelihood: Likelihood p(x|z) of complete observations. `sample` and the moments are those
            of complete observations. The support of each entry must contain 0 or 1/2.

    Raises:
        ValueError: If the entries of the likelihood depend on each other (raised by `forward`).

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, networks
        >>> likelihood = likelihoods.Missing(likelihoods.Normal(networks.MLP(3, [8], 2)))
        >>> x = torch.tensor([[0.5, float("nan")]])
        >>> likelihood(torch.zeros(1, 3)).log_prob(x).isfinite()
        tensor([True])

    See also: `networks.WithMask`, `VAE.impute`, `Columns`.
    """

    def __init__(self, likelihood: Complete) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, z: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """Return p(x|z), batch_shape `z.shape[:-1]`, event_shape that of one observation."""
        complete = self.likelihood(z, *context)
        return PartlyObserved(entries_of(complete)).to_event(len(complete.event_shape))
