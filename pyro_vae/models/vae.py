"""The Pyro programs of a variational autoencoder (Kingma & Welling, 2013).

    model:  z ~ p(z),  x ~ p(x|z)        the generative model, section 2.1
    guide:  z ~ q(z|x)                   the recognition model, section 2.2

`VAE` combines three parts, modules that return distributions, into two plain Pyro programs with the
sites `"z"` and `"x"` in the plate `"data"`. They work with any Pyro inference algorithm. A datum is
one event, so log densities have shape `(num_data,)`.
"""

from pathlib import Path
from typing import Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.arguments import ArgumentError, FilePath, checked
from pyro_vae.models.base import (
    AnyPrior,
    AnySchema,
    Likelihood,
    Posterior,
    Prior,
    expose_parameters,
    observed_or_drawn,
    sample_part,
)
from pyro_vae.models.exporting import BATCH_SIZES, SEED, export
from pyro_vae.models.with_schema import ThreeParts, Unconditional
from pyro_vae.pairs.inputs import UserData, as_input
from pyro_vae.priors.simple import Fixed
from pyro_vae.runtime.devices import evaluating
from pyro_vae.runtime.random_state import preserved_state


class Model(nn.Module):
    """p(x, z) = p(z) p(x|z), one z for each x: a Pyro model with the sites `"z"` and `"x"`."""

    def __init__(self, prior: Prior, likelihood: Likelihood) -> None:
        super().__init__()
        self.prior, self.likelihood = prior, likelihood

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
            z = sample_part("z", "prior", self.prior)
            return sample_part("x", "likelihood", self.likelihood, z, obs=observed_or_drawn(x))


class Guide(nn.Module):
    """q(z|x), amortized over x: a Pyro guide with the site `"z"`."""

    def __init__(self, posterior: Posterior) -> None:
        super().__init__()
        self.posterior = posterior

    def forward(self, x: Tensor) -> Tensor:
        """Sample z of shape `(num_data, latent_dim)` for x of shape `(num_data, *event)`."""
        expose_parameters(self, "guide")
        with pyro.plate("data", len(x), dim=-1):
            return sample_part("z", "guide", self.posterior, x)


class VAE(ThreeParts, Unconditional):
    """A variational autoencoder: Kingma & Welling (2013).

    `model` and `guide` are plain Pyro programs with the same latents. Both are modules and hold
    their parameters. They neither read nor write the parameter store of Pyro, so several VAEs can
    be trained in one process.

    Args:
        prior: Callable that returns p(z), batch_shape `()`, event_shape `(latent_dim,)`; or that
            distribution.
        likelihood: Callable of z that returns p(x|z), batch_shape `z.shape[:-1]`, event_shape that
            of one observation.
        guide: Callable of x that returns q(z|x), batch_shape that of the data, event_shape
            `(latent_dim,)`.
        schema: Description of the data by `pyro_vae.data.open`, or None. With a schema, functions
            that take data also take new data in the form of the source, such as frames.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(3),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(3, [8], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [8], 2 * 3)),
        ... )
        >>> x = torch.bernoulli(torch.full((20, 5), 0.5))
        >>> fit = pv.fit(vae, x, epochs=2, batch_size=10, compile=False, progress=False)
        >>> vae.encode(x).mean.shape
        torch.Size([20, 3])

    See also: `fit`, `evaluate`, `LadderVAE`, `MixedVAE`.
    """

    def __init__(
        self,
        prior: AnyPrior,
        likelihood: Likelihood,
        guide: Posterior,
        schema: AnySchema = None,
    ) -> None:
        super().__init__()
        self.schema = schema
        if isinstance(prior, Distribution):  # Pyro distributions are callable, too
            prior = Fixed(prior)
        self.model: Model = Model(prior, likelihood)
        self.guide: Guide = Guide(guide)

    def replace(self, **parts: Prior | Likelihood | Posterior | dist.TorchDistribution) -> Self:
        """Return a new VAE with some parts replaced. The other parts are shared, not copied.

        Args:
            parts: New parts: `prior`, `likelihood` or `guide`.

        Example:
            >>> import pyro_vae as pv
            >>> vae = pv.VAE(
            ...     pv.priors.StandardNormal(3),
            ...     pv.likelihoods.Bernoulli(pv.networks.MLP(3, [8], 5)),
            ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [8], 6)),
            ... )
            >>> other = vae.replace(prior=pv.priors.Laplace(3))
            >>> other.parts["likelihood"] is vae.parts["likelihood"]
            True

        See also: `VAE.parts`.
        """
        if unknown := sorted(parts.keys() - self.parts.keys()):
            raise ArgumentError(
                f"the part {unknown[0]!r} is unknown; expected some of {sorted(self.parts)}"
            )
        return type(self)(**{**self.parts, "schema": self.schema, **parts})

    def encode(self, x: UserData) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape `(num_data,)`, event_shape `(latent_dim,)`.

        Args:
            x: Data, shape `(num_data, *event)`; or a table, if the VAE has the schema of a table.

        Example:
            >>> import torch
            >>> import pyro_vae as pv
            >>> vae = pv.VAE(
            ...     pv.priors.StandardNormal(3),
            ...     pv.likelihoods.Bernoulli(pv.networks.MLP(3, [8], 5)),
            ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [8], 6)),
            ... )
            >>> vae.encode(torch.zeros(4, 5)).sample().shape
            torch.Size([4, 3])

        See also: `VAE.decode`, `VAE.reconstruct`.
        """
        return self._called("guide", as_input(self, x))

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z), batch_shape `z.shape[:-1]`, event_shape that of one observation.

        Args:
            z: Latents, shape `(*batch, latent_dim)`.

        Example:
            >>> import torch
            >>> import pyro_vae as pv
            >>> vae = pv.VAE(
            ...     pv.priors.StandardNormal(3),
            ...     pv.likelihoods.Bernoulli(pv.networks.MLP(3, [8], 5)),
            ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [8], 6)),
            ... )
            >>> vae.decode(torch.zeros(4, 3)).sample().shape
            torch.Size([4, 5])

        See also: `VAE.encode`, `VAE.sample`.
        """
        return self._called("likelihood", as_input(self, z, "z"))

    def sample_means(self, num_samples: int) -> Tensor:
        """Return E[x|z] at samples of the prior, shape `(num_samples, *event)`."""
        return self.decode(self.model.prior().sample((num_samples,))).mean

    @checked
    @torch.no_grad()
    def export(self, path: FilePath) -> None:
        """Write encoder and decoder to a folder, as programs that need only torch.

        `encoder.pt2` maps x to mean and standard deviation of q(z|x), each `(num_data,
        latent_dim)`. `decoder.pt2` maps z to the mean of p(x|z), in a tuple. Both take batches of
        any size, on the device and in the floating-point type of the parameters. Before they are
        written, they are read back and compared with the VAE on random rows.

        Args:
            path: Folder to write. Exported programs in this folder are replaced.

        Raises:
            PairError: If a part cannot be exported: for example, if q(z|x) has no mean in closed
                form, as a flow, or if values of tensors decide what a part computes.
            CheckpointError: If the folder contains other files.
            OSError: If the folder cannot be written.

        Example:
            >>> import tempfile, torch
            >>> import pyro_vae as pv
            >>> vae = pv.VAE(
            ...     pv.priors.StandardNormal(3),
            ...     pv.likelihoods.Bernoulli(pv.networks.MLP(3, [8], 5)),
            ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [8], 6)),
            ... )
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     vae.export(f"{folder}/export")
            ...     encoder = torch.export.load(f"{folder}/export/encoder.pt2").module()
            >>> mean, sd = encoder(torch.zeros(4, 5))
            >>> torch.equal(mean, vae.encode(torch.zeros(4, 5)).mean)
            True

        See also: `VAE.save`.
        """
        with evaluating(self), preserved_state(SEED):
            count = max(BATCH_SIZES)
            x, z = self.sample(count), self.model.prior().sample((count,))
            export(self.model.likelihood, self.guide.posterior, x, z, Path(path))
