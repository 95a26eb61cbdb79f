"""`Unconditional`: reconstructions, imputations and samples of the models of x alone."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.arguments import Samples, checked
from pyro_vae.data.sources.frames import is_source
from pyro_vae.data.sources.table_schema import TableSchema
from pyro_vae.distributions.entrywise import point_estimate
from pyro_vae.models.base import Autoencoder
from pyro_vae.pairs.inputs import UserData, as_input
from pyro_vae.part import Part
from pyro_vae.runtime.devices import evaluating

CHUNK = 1024  # rows of a table that are completed at once


class Unconditional(Autoencoder):
    """Base class of `VAE` and `LadderVAE`, with encoder, decoder and the schema of the data."""

    schema: Part | None
    latent_site = "z"  # site of the latents that `encode` and `decode` are about

    def encode(self, x: UserData) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape `(num_data,)`, event_shape `(latent_dim,)`."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z), batch_shape `z.shape[:-1]`, event_shape that of one observation."""
        raise NotImplementedError

    def predictive(self, x: UserData, num_samples: int) -> dist.TorchDistribution:
        """Return p(x'|z) at samples of q(z|x), batch_shape `(num_samples, num_data)`."""
        raise NotImplementedError

    def sample_means(self, num_samples: int) -> Tensor:
        """Return E[x|z] at samples of the prior, shape `(num_samples, *event)`."""
        raise NotImplementedError

    def _at_means(self, x: UserData) -> dist.TorchDistribution:
        """Return p(x'|z) at the mean of q(z|x), batch_shape `(num_data,)`."""
        raise NotImplementedError

    @torch.no_grad()
    def reconstruct(self, x: UserData) -> Any:
        """Return E[x'|z] at z = E[z|x].

        If q(z|x) has no mean in closed form, as for a flow, 100 samples estimate it. In a
        `LadderVAE`, each layer is at its mean given the layer above.

        Args:
            x: Data, shape `(num_data, *event)`; or a table, if the VAE has the schema of a table.

        Returns:
            Reconstructions, of the same shape as x. For a table, a frame with its types, with the
            most probable level in columns of levels.

        Example:
            >>> import torch
            >>> import pyro_vae as pv
            >>> vae = pv.VAE(
            ...     pv.priors.StandardNormal(3),
            ...     pv.likelihoods.Bernoulli(pv.networks.MLP(3, [8], 5)),
            ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [8], 6)),
            ... )
            >>> vae.reconstruct(torch.zeros(4, 5)).shape
            torch.Size([4, 5])

        See also: `VAE.encode`, `VAE.impute`.
        """
        with evaluating(self):
            given_z = self._at_means(x)
            if (schema := self._table_schema(x)) is not None:
                return schema.restore(point_estimate(given_z), like=x)
            return given_z.mean

    @checked
    @torch.no_grad()
    def impute(self, x: UserData, num_samples: Samples = 100, draws: bool = False) -> Any:
        """Sample the NaN entries of x from p(x'|z), z ~ q(z|x). Observed entries are unchanged.

        The mean of the samples is the imputation, and their standard deviation its uncertainty. The
        samples approximate p(x_missing|x_observed) as well as the guide approximates
        p(z|x_observed).

        Args:
            x: Data, shape `(num_data, *event)`, with NaN for missing entries; or a table, if the
                VAE has the schema of a table.
            num_samples: Number of samples for each datum.
            draws: Whether to return each sample of a table. For a tensor, each one is returned.

        Returns:
            Completed data, shape `(num_samples, num_data, *event)`. For a table, the table with
            missing values replaced by the median of the samples, or by the most frequent level; or
            with `draws`, a list of `num_samples` such tables, one for each sample.

        Raises:
            ValueError: If `num_samples` is below 1.
            PairError: If x does not fit the model.

        Example:
            >>> import torch
            >>> import pyro_vae as pv
            >>> likelihood = pv.likelihoods.Normal(pv.networks.MLP(3, [8], 2))
            >>> encoder = pv.networks.WithMask(pv.networks.MLP(2 * 2, [8], 6))
            >>> vae = pv.VAE(
            ...     pv.priors.StandardNormal(3),
            ...     pv.likelihoods.Missing(likelihood),
            ...     pv.guides.DiagonalNormal(encoder),
            ... )
            >>> x = torch.tensor([[0.5, float("nan")], [1.0, 2.0]])
            >>> vae.impute(x, num_samples=10).shape
            torch.Size([10, 2, 2])

        See also: `likelihoods.Missing`, `networks.WithMask`.
        """
        schema = self._table_schema(x)
        values = as_input(self, x)
        self.check(values)
        with evaluating(self):
            if schema is None:
                return self._completed(values, num_samples)
            chunks = [self._completed(part, num_samples) for part in values.split(CHUNK)]
        if draws:
            return [schema.complete(x, sample) for sample in torch.cat(chunks, dim=1)]
        return schema.complete(x, torch.cat([schema.center(part) for part in chunks]))

    def _completed(self, x: Tensor, num_samples: int) -> Tensor:
        return torch.where(x.isnan(), self.predictive(x, num_samples).sample(), x)

    def _table_schema(self, x: object) -> TableSchema | None:
        """Return the schema if it is one of a table, and x a table of a user."""
        schema = self.schema
        return schema if isinstance(schema, TableSchema) and is_source(x) else None
