"""A variational autoencoder with a discrete and a continuous latent.

    model:  c ~ p(c),  z ~ p(z),  x ~ p(x|c, z)          c a one-hot code
    guide:  c ~ q(c|x),  z ~ q(z|x)

As in Dupont (2018), "Learning Disentangled Joint Continuous and Discrete Representations", but
without its relaxation of c. Pyro sums over the codes exactly:

    fit(vae, x, objective=TraceEnum_ELBO())
"""

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.models.base import (
    AnySchema,
    Autoencoder,
    Likelihood,
    Posterior,
    Prior,
    expose_parameters,
    observed_or_drawn,
    sample_part,
)


class MixedVAE(Autoencoder):
    """A VAE with a discrete latent at the site `"c"` and a continuous latent at the site `"z"`.

    `TraceEnum_ELBO` sums over c. Other objectives sample c, and their gradients for q(c|x) are
    score-function estimates of large variance.

    Args:
        discrete_prior: Prior p(c), such as `priors.Categorical(num_codes)`.
        prior: Prior p(z), event_shape `(latent_dim,)`.
        likelihood: Likelihood p(x|c, z), called with c and z concatenated, shape
            `(*batch, num_codes + latent_dim)`.
        discrete_guide: Guide q(c|x), such as `guides.Categorical(encoder)`.
        guide: Guide q(z|x).
        schema: Description of the data by `pyro_vae.data.open`, or None, as for `VAE`.

    Example:
        >>> import torch
        >>> from pyro_vae import MixedVAE, guides, likelihoods, networks, priors
        >>> vae = MixedVAE(
        ...     discrete_prior=priors.Categorical(4),
        ...     prior=priors.StandardNormal(3),
        ...     likelihood=likelihoods.Bernoulli(networks.MLP(4 + 3, [8], 5)),
        ...     discrete_guide=guides.Categorical(networks.MLP(5, [8], 4)),
        ...     guide=guides.DiagonalNormal(networks.MLP(5, [8], 2 * 3)),
        ... )
        >>> c, z = vae.guide(torch.zeros(6, 5))
        >>> c.shape, z.shape
        (torch.Size([6, 4]), torch.Size([6, 3]))

    See also: `VAE`, `LadderVAE`, `guides.Categorical`.
    """

    def __init__(
        self,
        discrete_prior: Prior,
        prior: Prior,
        likelihood: Likelihood,
        discrete_guide: Posterior,
        guide: Posterior,
        schema: AnySchema = None,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.model = MixedModel(discrete_prior, prior, likelihood)
        self.guide = MixedGuide(discrete_guide, guide)


class MixedModel(nn.Module):
    """p(x, c, z): a Pyro model."""

    def __init__(self, discrete_prior: Prior, prior: Prior, likelihood: Likelihood) -> None:
        super().__init__()
        self.discrete_prior, self.prior, self.likelihood = discrete_prior, prior, likelihood

    def forward(self, x: Tensor | None = None, *, num_data: int = 1) -> Tensor:
        """Run the model.

        Args:
            x: Observations, shape `(num_data, *event)`. If `None`, x is sampled.
            num_data: Number of samples of x, used if x is `None`.

        Returns:
            The value of x, shape `(num_data, *event)`.
        """
        expose_parameters(self, "model")
        with pyro.plate("data", num_data if x is None else len(x), dim=-1):
            c = sample_part("c", "prior", self.discrete_prior)
            z = sample_part("z", "prior", self.prior)
            # Enumerated codes have an extra dimension to the left of the data.
            batch = torch.broadcast_shapes(c.shape[:-1], z.shape[:-1])
            both = torch.cat([c.expand(*batch, -1), z.expand(*batch, -1)], dim=-1)
            return sample_part("x", "likelihood", self.likelihood, both, obs=observed_or_drawn(x))


class MixedGuide(nn.Module):
    """q(c|x) q(z|x): a Pyro guide."""

    def __init__(self, discrete_posterior: Posterior, posterior: Posterior) -> None:
        super().__init__()
        self.discrete_posterior, self.posterior = discrete_posterior, posterior

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sample c and z for x of shape `(num_data, *event)`."""
        expose_parameters(self, "guide")
        with pyro.plate("data", len(x), dim=-1):
            c = sample_part("c", "guide", self.discrete_posterior, x)
            return c, sample_part("z", "guide", self.posterior, x)
