"""A variational autoencoder with a discrete latent beside a continuous one.

    model:  c ~ p(c),  z ~ p(z),  x ~ p(x|c, z)          c a one-hot code
    guide:  c ~ q(c|x),  z ~ q(z|x)

As in Dupont (2018), "Learning Disentangled Joint Continuous and Discrete Representations", but
without its relaxation of c. Pyro sums over the codes, exactly:

    fit(vae, x, objective=TraceEnum_ELBO())
"""

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.models.base import (
    Autoencoder,
    Likelihood,
    Posterior,
    Prior,
    expose_parameters,
    observed_or_drawn,
)


class MixedVAE(Autoencoder):
    """A discrete latent c and a continuous z, at the sites `"c"` and `"z"`.

    Both are drawn, and the gradients for q(c|x) are then score-function estimates, of large
    variance; `TraceEnum_ELBO` has c summed over instead.

    Args:
        discrete_prior: p(c), such as `priors.Categorical(num_codes)`.
        prior: p(z), event_shape `(latent_dim,)`.
        likelihood: p(x|c, z) as a function of c and z concatenated, of
            `num_codes + latent_dim` entries.
        discrete_guide: q(c|x), such as `guides.Categorical(encoder)`.
        guide: q(z|x).
    """

    def __init__(
        self,
        discrete_prior: Prior,
        prior: Prior,
        likelihood: Likelihood,
        discrete_guide: Posterior,
        guide: Posterior,
    ) -> None:
        super().__init__()
        self.model = MixedModel(discrete_prior, prior, likelihood)
        self.guide = MixedGuide(discrete_guide, guide)


class MixedModel(nn.Module):
    """p(x, c, z): a Pyro model."""

    def __init__(self, discrete_prior: Prior, prior: Prior, likelihood: Likelihood) -> None:
        super().__init__()
        self.discrete_prior, self.prior, self.likelihood = discrete_prior, prior, likelihood

    def forward(self, x: Tensor | None = None, *, num_data: int = 1) -> Tensor:
        """Observe x, of shape `(num_data, *event)`; without x, draw `num_data` of them."""
        expose_parameters(self, "model")
        with pyro.plate("data", num_data if x is None else len(x), dim=-1):
            c = pyro.sample("c", self.discrete_prior())
            z = pyro.sample("z", self.prior())
            # Enumerated codes stand in a dimension of their own, left of the data.
            batch = torch.broadcast_shapes(c.shape[:-1], z.shape[:-1])
            both = torch.cat([c.expand(*batch, -1), z.expand(*batch, -1)], dim=-1)
            return pyro.sample("x", self.likelihood(both), obs=observed_or_drawn(x))


class MixedGuide(nn.Module):
    """q(c|x) q(z|x): a Pyro guide."""

    def __init__(self, discrete_posterior: Posterior, posterior: Posterior) -> None:
        super().__init__()
        self.discrete_posterior, self.posterior = discrete_posterior, posterior

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draw c and z for x of shape `(num_data, *event)`."""
        expose_parameters(self, "guide")
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", self.discrete_posterior(x))
            return c, pyro.sample("z", self.posterior(x))
