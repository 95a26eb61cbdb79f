"""The Pyro program of a variational autoencoder (Kingma & Welling, 2013).

    model:  z ~ p(z),  x ~ p(x|z)        the generative model, section 2.1
    guide:  z ~ q(z|x)                   the recognition model, section 2.2

`VAE` puts three parts, each a module that returns a distribution, behind two plain Pyro programs
with the sites `"z"` and `"x"` in the plate `"data"`. Any Pyro inference takes them; none is written
here. A datum is one event, so log densities have shape `(num_data,)`.
"""

from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.models.base import (
    Autoencoder,
    Likelihood,
    Posterior,
    Prior,
    expose_parameters,
    observed_or_drawn,
)
from pyro_vae.priors.simple import Fixed
from pyro_vae.runtime.devices import evaluating


class Model(nn.Module):
    """p(x, z) = p(z) p(x|z), one z for each x: a Pyro model with the sites `"z"` and `"x"`."""

    def __init__(self, prior: Prior, likelihood: Likelihood) -> None:
        super().__init__()
        self.prior, self.likelihood = prior, likelihood

    def forward(self, x: Tensor | None = None, *, num_data: int = 1) -> Tensor:
        """Observe x, of shape `(num_data, *event)`; without x, draw `num_data` of them."""
        expose_parameters(self, "model")
        with pyro.plate("data", num_data if x is None else len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=observed_or_drawn(x))


class Guide(nn.Module):
    """q(z|x), amortized over x: a Pyro guide with the site `"z"`."""

    def __init__(self, posterior: Posterior) -> None:
        super().__init__()
        self.posterior = posterior

    def forward(self, x: Tensor) -> Tensor:
        """Draw z of shape `(num_data, latent_dim)` for x of shape `(num_data, *event)`."""
        expose_parameters(self, "guide")
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.posterior(x))


class VAE(Autoencoder):
    """A variational autoencoder: `model` and `guide` are plain Pyro programs that share latents.

    Both are modules and keep their parameters to themselves: Pyro's parameter store is neither
    read nor written, so that two VAEs can train in one process, or one of them twice.

    Args:
        prior: `prior()` returns p(z), batch_shape `()`, event_shape `(latent_dim,)`; or such a
            distribution itself.
        likelihood: `likelihood(z)` returns p(x|z), batch_shape `z.shape[:-1]`, event_shape that
            of one observation.
        guide: `guide(x)` returns q(z|x), batch_shape that of the data, event_shape
            `(latent_dim,)`.
    """

    def __init__(
        self, prior: Prior | dist.TorchDistribution, likelihood: Likelihood, guide: Posterior
    ) -> None:
        super().__init__()
        if isinstance(prior, Distribution):  # which is callable, too: to draw from it
            prior = Fixed(prior)
        self.model: Model = Model(prior, likelihood)
        self.guide: Guide = Guide(guide)

    @property
    def parts(self) -> dict[str, Any]:
        """The three parts by name, as `VAE(**parts)` takes them."""
        return {
            "prior": self.model.prior,
            "likelihood": self.model.likelihood,
            "guide": self.guide.posterior,
        }

    def replace(self, **parts: Any) -> Self:
        """Return a new VAE with these parts swapped; the others are shared, not copied."""
        return type(self)(**{**self.parts, **parts})

    def encode(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape `(num_data,)`, event_shape `(latent_dim,)`."""
        return self.guide.posterior(x)

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z), batch_shape `z.shape[:-1]`, event_shape that of one observation."""
        return self.model.likelihood(z)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Return E[x'|z] at z = E[z|x], of x's shape: what the latents kept of x.

        Where q(z|x) has no mean in closed form, as a flow has none, 100 draws estimate it.
        """
        with evaluating(self):
            posterior = self.encode(x)
            try:
                z = posterior.mean
            except NotImplementedError:
                z = posterior.sample((100,)).mean(0)
            return self.decode(z).mean

    @torch.no_grad()
    def impute(self, x: Tensor, num_samples: int = 100) -> Tensor:
        """Draw the NaN entries of x from p(x'|z), z ~ q(z|x); the observed entries stay.

        The mean of the draws is the imputation, their standard deviation its uncertainty. They
        follow p(x_missing|x_observed) as closely as the guide does p(z|x_observed).

        Args:
            x: shape `(num_data, *event)`.
            num_samples: draws for each datum.

        Returns:
            Completed data, shape `(num_samples, num_data, *event)`.

        Raises:
            ValueError: for a `num_samples` below 1.
            PairError: when x does not fit the model.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.check(x)
        with evaluating(self):
            z = self.encode(x).sample((num_samples,))
            return torch.where(x.isnan(), self.decode(z).sample(), x)
