"""A conditional variational autoencoder: Sohn, Lee & Yan (2015); Kingma et al. (2014), section 4.

    model:  z ~ p(z) or p(z|y),  x ~ p(x|z, y)
    guide:  z ~ q(z|x, y)

The context y is given for each datum, such as its class or its batch, so z describes the remaining
variation. All bounds and scores are those of log p(x|y).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeAlias, cast

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.arguments import ArgumentError, FilePath, Samples, checked, takes
from pyro_vae.data.any_data import Data
from pyro_vae.data.sources.frames import is_source
from pyro_vae.models.base import (
    AnyPrior,
    AnySchema,
    expose_parameters,
    observed_or_drawn,
    sample_part,
)
from pyro_vae.models.exporting import BATCH_SIZES, SEED, export
from pyro_vae.models.with_schema import Filled, ThreeParts
from pyro_vae.networks.inputs import Standardized, WithMask
from pyro_vae.pairs.check import check
from pyro_vae.pairs.inputs import UserData, as_input, dataset_of, program_error
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.site_table import SiteTable
from pyro_vae.part import Role
from pyro_vae.priors.simple import Fixed
from pyro_vae.runtime.devices import evaluating
from pyro_vae.runtime.random_state import preserved_state

GivenY: TypeAlias = Annotated[Callable[[Tensor], dist.TorchDistribution], Role("guide", ("y",))]
LikelihoodGivenY: TypeAlias = Annotated[
    Callable[[Tensor, Tensor], dist.TorchDistribution], Role("likelihood", ("z", "y"))
]
PosteriorGivenY: TypeAlias = Annotated[
    Callable[[Tensor, Tensor], dist.TorchDistribution], Role("guide", ("x", "y"))
]


class ConditionalModel(nn.Module):
    """p(x, z|y), one z for each x: a Pyro model with the sites `"z"` and `"x"`."""

    def __init__(
        self, prior: Callable[..., dist.TorchDistribution], likelihood: LikelihoodGivenY
    ) -> None:
        super().__init__()
        self.prior, self.likelihood = prior, likelihood
        self.prior_takes_y = not takes(prior, 0)

    def forward(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Run the model.

        Args:
            x: Observations, shape `(num_data, *event)`. If `None`, x is sampled.
            y: Context, shape `(num_data, *context)`.

        Returns:
            The value of x, shape `(num_data, *event)`.
        """
        expose_parameters(self, "model")
        with pyro.plate("data", len(y), dim=-1):
            z = sample_part("z", "prior", self.prior, *((y,) if self.prior_takes_y else ()))
            return sample_part("x", "likelihood", self.likelihood, z, y, obs=observed_or_drawn(x))


class ConditionalGuide(nn.Module):
    """q(z|x, y), amortized over x and y: a Pyro guide with the site `"z"`."""

    def __init__(self, posterior: PosteriorGivenY) -> None:
        super().__init__()
        self.posterior = posterior

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Sample z of shape `(num_data, latent_dim)`."""
        expose_parameters(self, "guide")
        with pyro.plate("data", len(y), dim=-1):
            return sample_part("z", "guide", self.posterior, x, y)


class ConditionalVAE(ThreeParts):
    """A VAE of x given y.

    The data of `fit`, `evaluate`, `refine` and `diagnose` are tuples `(x, y)`, or a `Dataset` with
    `context=(y,)`. The arguments of model and guide are `(x, y)`. The likelihoods and guides of
    this package pass y to their network: use `networks.WithContext`.

    Args:
        prior: Callable that returns p(z), or that distribution, as for `VAE`; or a callable of y
            that returns p(z|y), such as a guide of `pyro_vae.guides` with a network of y.
        likelihood: Callable of z and y that returns p(x|z, y).
        guide: Callable of x and y that returns q(z|x, y).
        schema: Description of the data by `pyro_vae.data.open`, or None. With a schema, functions
            that take data also take new data in the form of the source, such as AnnData, with their
            context.

    Raises:
        ArgumentError: If the network of a part does not take y.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> from pyro_vae.networks import MLP, WithContext
        >>> vae = pv.ConditionalVAE(
        ...     pv.priors.StandardNormal(3),
        ...     pv.likelihoods.Bernoulli(WithContext(MLP(3 + 2, [8], 5), in_shape=3)),
        ...     pv.guides.DiagonalNormal(WithContext(MLP(5 + 2, [8], 6), in_shape=5)),
        ... )
        >>> x, y = torch.ones(4, 5), torch.eye(2)[[0, 1, 0, 1]]
        >>> fit = pv.fit(vae, (x, y), epochs=1)
        >>> vae.sample(y=torch.eye(2)).shape
        torch.Size([2, 5])

        Batch correction: encode with the batch of each datum, decode in the reference batch.

        >>> reference = torch.eye(2)[[0]].expand(4, 2)
        >>> vae.decode(vae.encode(x, y).mean, reference).mean.shape
        torch.Size([4, 5])

    See also: `VAE`, `networks.WithContext`, `data.Dataset`.
    """

    def __init__(
        self,
        prior: AnyPrior | GivenY,
        likelihood: LikelihoodGivenY,
        guide: PosteriorGivenY,
        schema: AnySchema = None,
    ) -> None:
        super().__init__()
        self.schema = schema
        named = (("likelihood", likelihood, "decoder"), ("guide", guide, "encoder"))
        for role, part, name in named:
            network = getattr(part, name, None)
            while isinstance(network, WithMask | Standardized):
                network = network.network
            if network is not None and not takes(network, 2):
                raise ArgumentError(
                    f"the {name} of the {role}, a {type(network).__name__}, does not take y: wrap "
                    "it in networks.WithContext"
                )
        if isinstance(prior, Distribution):  # Pyro distributions are callable, too
            prior = Fixed(prior)
        self.model: ConditionalModel = ConditionalModel(prior, likelihood)
        self.guide: ConditionalGuide = ConditionalGuide(guide)

    def check(self, x: Tensor, y: Tensor) -> SiteTable:  # type: ignore[override]
        """Run model and guide once on x and y and return the table of their sample sites.

        Args:
            x: Data, shape `(num_data, *event)`.
            y: Context of each datum, shape `(num_data, *context)`.

        Raises:
            PairError: If model, guide, x and y do not fit together.

        See also: `pyro_vae.check`.
        """
        return check(self, (x, y))

    def encode(self, x: UserData, y: Tensor | None = None) -> dist.TorchDistribution:
        """Return q(z|x, y), batch_shape `(num_data,)`, event_shape `(latent_dim,)`.

        Args:
            x: Data, shape `(num_data, *event)`; or data in the form of the source, such as a table
                or AnnData, if the VAE has a schema.
            y: Context of each datum, shape `(num_data, *context)`, such as the result of the
                schema's `context`; by default that of data in the form of the source.

        Raises:
            PairError: If the guide fails on them, or x has no context and y is not given.

        See also: `ConditionalVAE.decode`, `ConditionalVAE.reconstruct`.
        """
        return self._called("guide", *self._inputs(x, y))

    def decode(self, z: Tensor, y: Tensor) -> dist.TorchDistribution:
        """Return p(x|z, y), batch_shape `z.shape[:-1]`, event_shape that of one observation.

        Args:
            z: Latents, shape `(*batch, latent_dim)`.
            y: Context, shape `(*batch, *context)`.

        Raises:
            PairError: If the likelihood fails on them.

        See also: `ConditionalVAE.encode`, `ConditionalVAE.sample`.
        """
        return self._called("likelihood", *self._paired(as_input(self, z, "z"), y))

    def _inputs(self, x: UserData, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return data and their context as tensors. Data in the form of the source contain it."""
        if y is not None:
            return self._paired(as_input(self, x), y)
        if self.schema is None or not is_source(x):
            raise PairError(
                f"y is missing: expected the context of each datum, since x is a "
                f"{type(x).__name__} without context"
            )
        values, *context = dataset_of(self, cast(Data, x)).batch(slice(None))
        if not context:
            raise PairError("y is missing: the schema of the data has no context")
        return values, context[0]

    def _paired(self, values: Tensor, y: object) -> tuple[Tensor, Tensor]:
        context = as_input(self, y, "y")
        if len(values) != len(context):
            raise PairError(
                f"expected one row of y for each of {len(values)} data, got shape "
                f"{tuple(context.shape)}"
            )
        return values, context

    def reconstruct(self, x: UserData, y: Tensor | None = None) -> Filled:
        """Return E[x'|z, y] at z = E[z|x, y]; 100 samples of z if their mean has no closed form.

        Args:
            x: Data, as for `encode`.
            y: Context of each datum, as for `encode`.

        Returns:
            Reconstructions, of the same shape as x. For a table, a frame with its types and its
            context, with the most probable level in columns of levels.

        Raises:
            PairError: If guide or likelihood fails on them, or x has no context and y is not given.

        See also: `ConditionalVAE.encode`.
        """
        return self._reconstructed(x, *self._inputs(x, y))

    @checked
    def impute(
        self,
        x: UserData,
        y: Tensor | None = None,
        num_samples: Samples = 100,
        draws: bool = False,
    ) -> Filled:
        """Sample the NaN entries of x from p(x'|z, y), z ~ q(z|x, y), as `VAE.impute`.

        Args:
            x: Data, shape `(num_data, *event)`, with NaN for missing entries; or a table, if the
                VAE has the schema of a table. A context has no missing values.
            y: Context of each datum, as for `encode`.
            num_samples: Number of samples for each datum.
            draws: Whether to return each sample of a table. For a tensor, each one is returned.

        Returns:
            Completed data, shape `(num_samples, num_data, *event)`; for a table, tables as
            `VAE.impute` returns them.

        Raises:
            PairError: If x and y do not fit the model, or x has no context and y is not given.
            DataError: If a value of the context is missing or unknown.

        Example:
            >>> import torch
            >>> import pyro_vae as pv
            >>> from pyro_vae.networks import MLP, WithContext, WithMask
            >>> likelihood = pv.likelihoods.Normal(WithContext(MLP(3 + 2, [8], 2), in_shape=3))
            >>> encoder = WithMask(WithContext(MLP(2 * 2 + 2, [8], 6), in_shape=4))
            >>> vae = pv.ConditionalVAE(
            ...     pv.priors.StandardNormal(3),
            ...     pv.likelihoods.Missing(likelihood),
            ...     pv.guides.DiagonalNormal(encoder),
            ... )
            >>> x = torch.tensor([[0.5, float("nan")], [1.0, 2.0]])
            >>> vae.impute(x, torch.eye(2), num_samples=10).shape
            torch.Size([10, 2, 2])

        See also: `VAE.impute`, `likelihoods.Missing`.
        """
        return self._imputed(x, num_samples, draws, *self._inputs(x, y))

    @torch.no_grad()
    def sample(self, y: Tensor) -> Tensor:  # type: ignore[override]
        """Sample x from p(x|y), once for each row of y.

        Args:
            y: Context, shape `(num_samples, *context)`.

        Returns:
            Samples, shape `(num_samples, *event)`.

        Raises:
            PairError: If y does not fit the model.

        See also: `ConditionalVAE.decode`.
        """
        context = as_input(self, y, "y")
        with evaluating(self):
            try:
                return self.model(None, context)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise program_error("model", context, error, self.model) from error

    @checked
    @torch.no_grad()
    def export(self, path: FilePath, y: Tensor) -> None:
        """Write encoder and decoder to a folder, as programs that need only torch.

        `encoder.pt2` maps x and y to mean and standard deviation of q(z|x, y), and `decoder.pt2`
        maps z and y to the mean of p(x|z, y), in a tuple. See `VAE.export`.

        Args:
            path: Folder to write. Exported programs in this folder are replaced.
            y: Examples of the context, shape `(num_data, *context)`.

        Raises:
            PairError: If a part cannot be exported, or y does not fit the model.
            CheckpointError: If the folder contains other files.
            OSError: If the folder cannot be written.

        Example:
            >>> import tempfile, torch
            >>> import pyro_vae as pv
            >>> from pyro_vae.networks import MLP, WithContext
            >>> vae = pv.ConditionalVAE(
            ...     pv.priors.StandardNormal(3),
            ...     pv.likelihoods.Bernoulli(WithContext(MLP(3 + 2, [8], 5), in_shape=3)),
            ...     pv.guides.DiagonalNormal(WithContext(MLP(5 + 2, [8], 6), in_shape=5)),
            ... )
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     vae.export(f"{folder}/export", y=torch.eye(2))
            ...     encoder = torch.export.load(f"{folder}/export/encoder.pt2").module()
            >>> encoder(torch.zeros(4, 5), torch.eye(2)[[0, 1, 0, 1]])[0].shape
            torch.Size([4, 3])

        See also: `ConditionalVAE.save`.
        """
        with evaluating(self), preserved_state(SEED):
            context = as_input(self, y, "y")
            context = context[torch.arange(max(BATCH_SIZES)) % len(context)]
            x = self.sample(context)
            q = self.encode(x, context)
            parts = self.model.likelihood, self.guide.posterior
            export(*parts, x, q.sample(), Path(path), context)
