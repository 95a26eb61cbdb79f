"""Pairs of a Pyro model and its guide."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Protocol, TypeAlias

from pyro_vae.arguments import Check, Unfit, check_fields

Program: TypeAlias = Callable[..., object]  # a Pyro model or guide


class PairLike(Protocol):
    """An object with a Pyro model and a Pyro guide, both callable on the data."""

    @property
    def model(self) -> Program:
        """The Pyro model, p(x, z)."""

    @property
    def guide(self) -> Program:
        """The Pyro guide, q(z|x)."""


class IsPair(Check):
    """An object with a Pyro model and a Pyro guide."""

    expected = "a pair, an object with a .model and a .guide such as a VAE or a pv.Pair"

    def convert(self, value: object) -> object:
        """Return the pair."""
        if isinstance(value, type):
            raise Unfit(f"pass an instance, {value.__name__}(...)")
        programs = [getattr(value, name, None) for name in ("model", "guide")]
        if not all(map(callable, programs)):
            hint = "pass the VAE itself, or pv.Pair(model, guide)" if callable(value) else ""
            raise Unfit(hint)
        return value


class IsProgram(Check):
    """A Pyro model or guide."""

    expected = "a Pyro program, a function or a module"

    def convert(self, value: object) -> object:
        """Return the program."""
        if isinstance(value, type):
            raise Unfit(f"pass an instance, {value.__name__}(...)")
        if not callable(value):
            raise Unfit
        return value


AnyPair: TypeAlias = Annotated[PairLike, IsPair()]
AnyProgram: TypeAlias = Annotated[Program, IsProgram()]


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

    model: AnyProgram
    guide: AnyProgram
    # The order of the columns of a frame, which `fit` sets.
    schema: object = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)


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
