"""`Autoencoder`, and the `param` messages by which a model exposes its parameters to Pyro."""

import os
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import am_i_wrapped, effectful
from torch import Tensor, nn

from pyro_vae.checkpointing import model_folder as checkpoints
from pyro_vae.pairs.check import check
from pyro_vae.pairs.site_table import SiteTable
from pyro_vae.part import Part
from pyro_vae.runtime.devices import evaluating

Prior = Callable[[], dist.TorchDistribution]
Likelihood = Callable[[Tensor], dist.TorchDistribution]
Posterior = Callable[[Tensor], dist.TorchDistribution]


class Autoencoder(Part):
    """A model and a guide, modules both, that are saved, checked and drawn from as one."""

    model: nn.Module
    guide: nn.Module

    def check(self, x: Tensor) -> SiteTable:
        """Run both programs once on x and return the table of sites; see `pyro_vae.check`."""
        return check(self, x)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save architecture and weights into the folder `path`; `pyro_vae.load` reads it."""
        checkpoints.save(self, path)

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:
        """Draw x from the prior predictive p(x), shape `(num_samples, *event)`."""
        with evaluating(self):
            return self.model(num_data=num_samples)


def observed_or_drawn(x: Tensor | None) -> Tensor | None:
    """Return what a model's site `"x"` observes.

    Where Pyro masks out the whole model, as `pyro.infer.Predictive` does, an observation has no
    weight and would only be handed back as its own prediction: x is drawn there, too.
    """
    return None if pyro.poutine.get_mask() is False else x


@effectful(type="param")
def _parameter(parameter: nn.Parameter) -> Tensor:
    alias = parameter.detach()
    alias.unconstrained = lambda: parameter  # type: ignore[attr-defined]  # as Pyro's store does
    return alias


def expose_parameters(module: nn.Module, prefix: str) -> None:
    """Tell the Pyro handlers at work which parameters `module` trains.

    `pyro.module` would do so through the global parameter store, where a second VAE under the same
    names finds the first one's parameters and never moves. This emits the same `param` messages,
    which is all that `pyro.infer.SVI` listens to, and stores nothing.
    """
    if am_i_wrapped():
        for name, parameter in module.named_parameters(prefix):
            if parameter.requires_grad:
                _parameter(parameter, name=name)
