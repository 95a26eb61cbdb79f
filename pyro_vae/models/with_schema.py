"""`WithSchema`: reconstructions and imputations, in the form of the data; of x alone or given y."""

from typing import Any, TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.arguments import Samples, checked
from pyro_vae.data.sources.frames import is_source, with_index_of
from pyro_vae.data.sources.table_schema import TableSchema
from pyro_vae.distributions.entrywise import point_estimate
from pyro_vae.models.base import Autoencoder, call_part, mean_of
from pyro_vae.pairs.inputs import UserData, as_input
from pyro_vae.part import Part
from pyro_vae.runtime.devices import evaluating

Filled: TypeAlias = Any  # a tensor, or a frame or list of frames like the source
CHUNK = 1024  # rows of a table that are completed at once


class WithSchema(Autoencoder):
    """Base class of the models with `encode`, `decode` and a description of the data.

    The context is the `y` of a `ConditionalVAE`, and empty in other models.
    """

    schema: Part | None
    latent_site = "z"  # site of the latents that `encode` and `decode` are about

    def predictive(self, x: Tensor, *context: Tensor, num_samples: int) -> dist.TorchDistribution:
        """Return p(x'|z) at samples of q(z|x), batch_shape `(num_samples, num_data)`."""
        raise NotImplementedError

    @torch.no_grad()
    def completed(self, x: Tensor, *context: Tensor, num_samples: int) -> Tensor:
        """Sample the NaN entries of x; return shape `(num_samples, num_data, *event)`."""
        with evaluating(self):
            draws = self.predictive(x, *context, num_samples=num_samples).sample()
        return torch.where(x.isnan(), draws, x)

    def _at_means(self, x: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """Return p(x'|z) at the mean of q(z|x), batch_shape `(num_data,)`."""
        raise NotImplementedError

    @torch.no_grad()
    def _reconstructed(self, source: object, x: Tensor, *context: Tensor) -> Filled:
        """Return E[x'|z] at z = E[z|x], in the form of a source with the data x."""
        with evaluating(self):
            given_z = self._at_means(x, *context)
            if (schema := self._table_schema(source)) is None:
                return given_z.mean
            x = point_estimate(given_z)
            found = schema.restore(x, like=source, context=context[0] if context else None)
            return with_index_of(found, source)

    @torch.no_grad()
    def _imputed(
        self, source: object, num_samples: int, draws: bool, x: Tensor, *context: Tensor
    ) -> Filled:
        """Sample the NaN entries of x, the data of a source; see `VAE.impute`."""
        schema = self._table_schema(source)
        self.check(x, *context)
        if schema is None:
            return self.completed(x, *context, num_samples=num_samples)
        parts = zip(*(rows.split(CHUNK) for rows in (x, *context)), strict=True)
        chunks = [self.completed(*part, num_samples=num_samples) for part in parts]
        if draws:
            return [schema.complete(source, sample) for sample in torch.cat(chunks, dim=1)]
        return schema.complete(source, torch.cat([schema.center(part) for part in chunks]))

    def _table_schema(self, x: object) -> TableSchema | None:
        """Return the schema if it is one of a table, and x a table of a user."""
        schema = self.schema
        return schema if isinstance(schema, TableSchema) and is_source(x) else None


class ThreeParts(WithSchema):
    """Base class of the models with one prior, one likelihood and one guide."""

    @property
    def parts(self) -> dict[str, Any]:
        """The arguments `prior`, `likelihood` and `guide` of the constructor, by name."""
        return {
            "prior": self.model.prior,
            "likelihood": self.model.likelihood,
            "guide": self.guide.posterior,
        }

    def predictive(self, x: Tensor, *context: Tensor, num_samples: int) -> dist.TorchDistribution:
        """Return p(x'|z) at samples of q(z|x), batch_shape `(num_samples, num_data)`."""
        z = self._called("guide", x, *context).sample((num_samples,))
        return self._called("likelihood", z, *(y.expand(num_samples, *y.shape) for y in context))

    def _at_means(self, x: Tensor, *context: Tensor) -> dist.TorchDistribution:
        return self._called("likelihood", mean_of(self._called("guide", x, *context)), *context)

    def _called(self, role: str, values: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """Return the distribution of the part `role` at some values, given their context.

        Raises:
            PairError: If the part fails on the values.
        """
        return call_part(role, self.parts[role], values, *context)


class Unconditional(WithSchema):
    """Base class of `VAE` and `LadderVAE`, the models of x alone."""

    def encode(self, x: UserData) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape `(num_data,)`, event_shape `(latent_dim,)`."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z), batch_shape `z.shape[:-1]`, event_shape that of one observation."""
        raise NotImplementedError

    def sample_means(self, num_samples: int) -> Tensor:
        """Return E[x|z] at samples of the prior, shape `(num_samples, *event)`."""
        raise NotImplementedError

    def reconstruct(self, x: UserData) -> Filled:
        """Return E[x'|z] at z = E[z|x].

        If q(z|x) has no mean in closed form, as for a flow, 100 samples estimate it. In a
        `LadderVAE`, each layer is at its mean given the layer above.

        Args:
            x: Data, shape `(num_data, *event)`; or a table, if the VAE has the schema of a table.

        Returns:
            Reconstructions, of the same shape as x. For a table, a frame with its types and index,
            with the most probable level in columns of levels.

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
        return self._reconstructed(x, as_input(self, x))

    @checked
    def impute(self, x: UserData, num_samples: Samples = 100, draws: bool = False) -> Filled:
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
        return self._imputed(x, num_samples, draws, as_input(self, x))
