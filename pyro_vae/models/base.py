"""`Autoencoder`, and the `param` messages that expose the parameters of a model to Pyro."""

from collections.abc import Callable
from typing import Annotated, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import am_i_wrapped, effectful
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.arguments import FilePath, Samples, checked, shown
from pyro_vae.checkpointing import model_folder
from pyro_vae.data.sources.schema import IsSchema
from pyro_vae.distributions.foreign import as_pyro
from pyro_vae.pairs.check import check
from pyro_vae.pairs.inputs import program_error
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.site_table import SiteTable
from pyro_vae.part import Part, Role
from pyro_vae.runtime.devices import evaluating

AnySchema: TypeAlias = Annotated[Part | None, IsSchema()]
Prior: TypeAlias = Annotated[Callable[[], dist.TorchDistribution], Role("prior")]
AnyPrior: TypeAlias = Annotated[
    Prior | dist.TorchDistribution, Role("prior", kinds=(Distribution,))
]
Likelihood: TypeAlias = Annotated[
    Callable[[Tensor], dist.TorchDistribution], Role("likelihood", ("z",))
]
Posterior: TypeAlias = Annotated[Callable[[Tensor], dist.TorchDistribution], Role("guide", ("x",))]
Network: TypeAlias = Annotated[nn.Module, Role("network", ("values",))]


class Autoencoder(Part):
    """Base class of the models: a Pyro model and a Pyro guide, both modules, as one `Part`."""

    model: nn.Module
    guide: nn.Module

    def check(self, x: Tensor) -> SiteTable:
        """Run model and guide once on x and return the table of their sample sites.

        Args:
            x: Data, shape `(num_data, *event)`.

        Raises:
            PairError: If model, guide and x do not fit together.

        Example:
            >>> import torch
            >>> import pyro_vae as pv
            >>> vae = pv.VAE(
            ...     pv.priors.StandardNormal(3),
            ...     pv.likelihoods.Bernoulli(pv.networks.MLP(3, [8], 5)),
            ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [8], 6)),
            ... )
            >>> vae.check(torch.zeros(4, 5)).model["x"].event_shape
            (5,)

        See also: `pyro_vae.check`.
        """
        return check(self, x)

    @checked
    def save(self, path: FilePath) -> None:
        """Save architecture and weights to a directory.

        Args:
            path: Directory of the saved model. A saved model at this path is replaced.

        Raises:
            CheckpointError: If a constructor argument of a part cannot be stored as data, or the
                directory contains other files.
            OSError: If the directory cannot be written.

        Example:
            >>> import tempfile
            >>> import pyro_vae as pv
            >>> vae = pv.VAE(
            ...     pv.priors.StandardNormal(3),
            ...     pv.likelihoods.Bernoulli(pv.networks.MLP(3, [8], 5)),
            ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [8], 6)),
            ... )
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     vae.save(f"{folder}/model")
            ...     loaded = pv.load(f"{folder}/model")
            >>> type(loaded).__name__
            'VAE'

        See also: `pyro_vae.load`.
        """
        model_folder.save(self, path)

    @checked
    @torch.no_grad()
    def sample(self, num_samples: Samples) -> Tensor:
        """Sample x from the prior predictive distribution p(x).

        `vae.schema.restore(vae.sample(1000))` returns samples in the form of the training data, for
        example as a frame with the types and levels of a table.

        Args:
            num_samples: Number of samples.

        Returns:
            Samples, shape `(num_samples, *event)`.

        Example:
            >>> import pyro_vae as pv
            >>> vae = pv.VAE(
            ...     pv.priors.StandardNormal(3),
            ...     pv.likelihoods.Bernoulli(pv.networks.MLP(3, [8], 5)),
            ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [8], 6)),
            ... )
            >>> vae.sample(4).shape
            torch.Size([4, 5])

        See also: `VAE.decode`, `VAE.reconstruct`.
        """
        with evaluating(self):
            return self.model(num_data=num_samples)


def call_part(
    role: str, part: Callable[..., object], values: Tensor, *context: Tensor
) -> dist.TorchDistribution:
    """Return the distribution of a part at some values, given their context.

    Raises:
        PairError: If the part fails on the values.
    """
    try:
        return expect_distribution(role, part, part(values, *context))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise program_error(role, values, error, part) from error


def sample_part(
    site: str, role: str, part: Callable[..., object], *inputs: Tensor, obs: Tensor | None = None
) -> Tensor:
    """Sample a site from the distribution that a part returns, or observe it.

    Args:
        site: Name of the sample site.
        role: Role of the part, for the error message.
        part: The part.
        *inputs: Arguments of the part.
        obs: Observed value, or None.

    Raises:
        PairError: If the part does not return a distribution.
    """
    return pyro.sample(site, expect_distribution(role, part, part(*inputs)), obs=obs)


def mean_of(posterior: Distribution, num_samples: int = 100) -> Tensor:
    """Return E[z], estimated from samples if it has no closed form, as for a flow."""
    try:
        return posterior.mean
    except NotImplementedError:
        return posterior.sample((num_samples,)).mean(0)


def observed_or_drawn(x: Tensor | None) -> Tensor | None:
    """Return the `obs` argument of the site `"x"` of a model.

    If a handler masks out the whole model, as `pyro.infer.Predictive` does, an observation has no
    weight, and the site would return the observation as its prediction. In that case the result
    is `None`, and the site is sampled.
    """
    return None if pyro.poutine.get_mask() is False else x


def expect_distribution(role: str, part: object, value: object) -> dist.TorchDistribution:
    """Return the value of a part if it is a distribution, as one of Pyro.

    Raises:
        PairError: If it is something else.
    """
    if isinstance(value, Distribution):
        return as_pyro(value)
    raise PairError(
        f"the {role}, {shown(part)}, returned {shown(value)}; expected a distribution. A network "
        f"is an argument of a {role}: see pyro_vae.{role}s"
    )


@effectful(type="param")
def _parameter(parameter: nn.Parameter) -> Tensor:
    alias = parameter.detach()
    # The parameter store of Pyro sets the same attribute.
    alias.unconstrained = lambda: parameter  # type: ignore[attr-defined]
    return alias


def expose_parameters(module: nn.Module, prefix: str) -> None:
    """Send a `param` message for each trainable parameter of a module to the active Pyro handlers.

    `pyro.module` would register the parameters in the global parameter store. A second VAE with the
    same names would then find the parameters of the first and never be trained. These messages are
    the same as those of `pyro.module`, and all that `pyro.infer.SVI` reads, but nothing is stored.

    Args:
        module: Module with the parameters.
        prefix: Prefix of the parameter names.
    """
    if am_i_wrapped():
        for name, parameter in module.named_parameters(prefix):
            if parameter.requires_grad:
                _parameter(parameter, name=name)
