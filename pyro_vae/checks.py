"""Before a minute is spent: does a model/guide pair fit its data, and its two halves each other?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.poutine.util import site_is_subsample
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyro_vae.parts import evaluating


class Pair(Protocol):
    """Anything that has a Pyro model and a Pyro guide, both callable on the data."""

    @property
    def model(self) -> Callable[..., Any]:
        """The Pyro model: p(x, z)."""

    @property
    def guide(self) -> Callable[..., Any]:
        """The Pyro guide: q(z|x)."""


class PairError(ValueError):
    """A model/guide pair that does not fit its data, or whose two halves do not fit each other."""


@dataclass(frozen=True)
class Site:
    """One sample site of one program: its shapes and the support of its distribution."""

    name: str
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    support: str
    observed: bool

    def __str__(self) -> str:
        return f"{self.batch_shape} | {self.event_shape} on {self.support}"


@dataclass(frozen=True)
class SiteTable:
    """The sample sites of a pair, those of the model beside those of the guide."""

    model: dict[str, Site]
    guide: dict[str, Site]

    def __rich__(self) -> Table:
        table = Table("site", "model: batch | event on support", "guide: batch | event on support")
        for name, site in self.model.items():
            other = "observed" if site.observed else str(self.guide[name])
            table.add_row(name, str(site), other)
        return table

    def __str__(self) -> str:
        console = Console(width=120)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


@torch.no_grad()
def check(pair: Pair, x: Tensor) -> SiteTable:
    """Run a pair's guide and model once on x, without changing anything, and list their sites.

    Args:
        pair: anything with `.model` and `.guide`.
        x: a few data, shape `(num_data, *event)`.

    Raises:
        PairError: when x is empty, not floating point or infinite, when a draw of the guide is not
            finite, when a latent's shape or support differs between model and guide, when the
            decoder's output does not fit x, or when x is outside the likelihood's support; the
            message says what to change.
    """
    check_values(x)
    with (
        torch.random.fork_rng(),
        evaluating(pair.model, pair.guide),
        pyro.validation_enabled(False),
    ):
        guide, failure = _run("guide", pair.guide, x)
        if failure:
            raise failure
        _check_draws(guide, x)
        # The model runs twice: on its own, for the shapes that it means its latents to have, and
        # on the guide's draws, for what it then says of x. A latent of another size than its
        # decoder's makes it fail, but is better said of the latent.
        model, failure = _run("model", pair.model, x)
        table = SiteTable(_sites(model), _sites(guide))
        _compare_latents(table)
        if failure:
            raise failure
        replayed, failure = _run("model", poutine.replay(pair.model, trace=guide), x)
        if failure:
            raise failure
    for name, node in replayed.nodes.items():
        if node["type"] == "sample" and node["is_observed"]:
            _check_observation(name, node)
    return table


def check_values(x: Tensor) -> None:
    """Raise `PairError` unless x is a batch of at least one datum, floating point, not infinite."""
    if not isinstance(x, Tensor):
        raise PairError(f"x must be a torch tensor, got {type(x).__name__}")
    if x.dim() == 0 or len(x) == 0:
        raise PairError(f"x must hold at least one datum, got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise PairError(
            f"x has dtype {x.dtype}; floating point is expected. Bytes 0..255 become data by "
            "x.float() / 255, and for a Bernoulli likelihood by binarizing them (binarize=)"
        )
    if torch.isinf(x).any():
        raise PairError("x holds infinite values")


def _run(
    role: str, program: Callable[..., Any], x: Tensor
) -> tuple[poutine.Trace, PairError | None]:
    """Trace a program on x; where it fails, return what it did until then and a `PairError`."""
    with poutine.trace() as tracer:
        try:
            program(x)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            failure = PairError(
                f"the {role} fails on x of shape {tuple(x.shape)} and dtype {x.dtype}: {error}"
            )
            failure.__cause__ = error
            return tracer.trace, failure
    return tracer.trace, None


def _check_draws(guide: poutine.Trace, x: Tensor) -> None:
    for name, node in guide.nodes.items():
        if node["type"] != "sample":
            continue
        value: Any = node["value"]
        if not torch.isfinite(value).all():
            if torch.isnan(x).any():
                fix = "x holds NaN entries: wrap the encoder in networks.WithMask"
            else:
                fix = "rescale x, or look at the encoder's weights"
            raise PairError(f"the guide's draw of latent {name!r} is not finite: {fix}")


def _sites(trace: poutine.Trace) -> dict[str, Site]:
    sites = {}
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and not site_is_subsample(node):
            fn: Any = node["fn"]
            support = _support_name(fn.support)
            batch, event = tuple(fn.batch_shape), tuple(fn.event_shape)
            sites[name] = Site(name, batch, event, support, node["is_observed"])
    return sites


def _support_name(support: Any) -> str:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return str(support).removesuffix("()")


def _compare_latents(table: SiteTable) -> None:
    for name, site in table.model.items():
        if site.observed:
            continue
        if name not in table.guide:
            raise PairError(
                f"the model draws the latent {name!r}, the guide does not: it would silently be "
                f"drawn from its prior. Sample {name!r} in the guide, or observe it in the model"
            )
        other = table.guide[name]
        if site.event_shape != other.event_shape:
            raise PairError(
                f"latent {name!r} has event shape {site.event_shape} in the model's prior and "
                f"{other.event_shape} in the guide: give prior, decoder and guide one latent size"
            )
        if site.batch_shape != other.batch_shape:
            raise PairError(
                f"latent {name!r} has batch shape {site.batch_shape} in the model and "
                f"{other.batch_shape} in the guide: look for a missing .to_event() or plate"
            )


def _check_observation(name: str, node: Any) -> None:
    distribution, value = node["fn"], node["value"]
    if distribution.event_shape != value.shape[len(distribution.batch_shape) :]:
        raise PairError(
            f"one observation {name!r} has shape {tuple(value.shape[1:])}, but the likelihood "
            f"describes one of shape {tuple(distribution.event_shape)}: give the decoder that "
            "out_shape"
        )
    check_support(distribution, value, name)


def check_support(distribution: Any, value: Tensor, name: str = "x") -> None:
    """Raise `PairError`, saying what to do, where `value` is outside a distribution's support."""
    inside = distribution.support.check(value)
    if inside.all():
        return
    support = _support_name(distribution.support)
    index = int((~inside.reshape(len(value), -1).all(dim=1)).nonzero()[0, 0])
    low, high = value.min().item(), value.max().item()
    if torch.isnan(value).any():
        fix = "replace or drop the NaN entries, or wrap the likelihood in likelihoods.Missing"
    elif support == "Boolean" and low >= 0 and high <= 1:
        fix = (
            "binarize them (binarize='dynamic', 'static' or 'threshold' of the data sets), or use "
            "a likelihood for grey values such as ContinuousBernoulli"
        )
    elif low >= 0 and high > 1:
        fix = "scale bytes 0..255 to 0..1 by x / 255, or choose a likelihood with this support"
    else:
        fix = "rescale x, or choose a likelihood with this support"
    raise PairError(
        f"observation {name!r} holds values in [{low:g}, {high:g}] (first at datum {index}), "
        f"outside the likelihood's support {support}: {fix}"
    )
