"""Pairs of a Pyro model and its guide."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Program: TypeAlias = Callable[..., object]  # a Pyro model or guide


class PairLike(Protocol):
    """An object with a Pyro model and a Pyro guide, both callable on the data."""

    @property
    def model(self) -> Program:
        """The Pyro model, p(x, z)."""

    @property
    def guide(self) -> Program:
        """The Pyro guide, q(z|x)."""


@dataclass(frozen=True)
class Pair:
    """A Pyro model and its guide, as functions or modules.

    Every function of this package that takes a pair accepts it. Model and guide are called with
    the same arguments: a batch x of shape `(num_data, *event)`, and any other tensors with one row
    per datum, such as labels. Put the sites of each datum into `pyro.plate("data", len(x))`.
    Latents outside that plate are shared by all data.

    Args:
        model: Pyro model, p(x, z).
        guide: Pyro guide, q(z|x).

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import pyro_vae as pv
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> pair = pv.Pair(model, guide)
        >>> pv.evaluate(pair, torch.randn(4), num_samples=2).elbo.shape
        (4,)

    See also: `VAE`, a pair made of a prior, a likelihood and a guide; `check`; `fit`; `evaluate`.
    """

    model: Program
    guide: Program


class PairError(ValueError):
    """A model and its guide do not fit the data or each other. The message suggests a change.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> empty = pv.Pair(lambda x: None, lambda x: None)
        >>> pv.check(empty, torch.randn(4, 2))
        Traceback (most recent call last):
        ...
        pyro_vae.pairs.pair.PairError: the model has no observed site: ...

    See also: `check`, which raises it before training.
    """
