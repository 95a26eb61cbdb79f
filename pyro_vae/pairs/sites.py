"""What the trace of a Pyro program says of its sample sites, and the handlers that steer one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.pairs.pair import PairError

DRAWS = "_draws"  # the plate over draws of the latents
# Plates over draws, of this package and of Pyro's vectorized ELBOs: no data stand in them.
PARTICLE_PLATES = (DRAWS, "num_particles_vectorized")


@dataclass(frozen=True)
class SiteDraws:
    """One sample site over many draws: values `(draws, *plates, *event)`, log densities in nats.

    The values of an observed site do not depend on the draw: they have one.
    """

    value: Tensor
    log_prob: Tensor
    plates: tuple[str, ...]
    observed: bool
    distribution: Any

    @property
    def is_factor(self) -> bool:
        """Whether it is a `pyro.factor`, a log density without a value."""
        return type(self.distribution).__name__ == "Unit"

    @property
    def is_delta(self) -> bool:
        """Whether its distribution is a point mass, under whatever wrappers."""
        distribution = self.distribution
        while hasattr(distribution, "base_dist"):
            distribution = distribution.base_dist
        return isinstance(distribution, Delta)

    @property
    def event_dim(self) -> int:
        """Number of dimensions of one value."""
        return self.value.dim() - 1 - len(self.plates)

    def rows(self, plate: str) -> Tensor:
        """Return the values of a site in a plate as `(draws, plate, *other plates, *event)`."""
        return self.value.movedim(1 + self.plates.index(plate), 1)

    def per_datum(self, plate: str) -> Tensor:
        """Return the log density summed over all plates but one, shape `(draws, data)`."""
        others = [1 + i for i, name in enumerate(self.plates) if name != plate]
        return self.log_prob.sum(others) if others else self.log_prob

    def joint(self) -> Tensor:
        """Return the log density summed over all plates, shape `(draws,)`."""
        return self.log_prob.flatten(1).sum(1) if self.plates else self.log_prob


Sites = dict[str, SiteDraws]


class ConditionLatents(Messenger):
    """Gives latent sites and subsampled plates their values; they stay what they are."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def check_sites(guide: dict[str, Any], model: dict[str, Any]) -> None:
    """Raise `PairError` unless guide and model have the same latents and something is observed."""
    latents = [name for name, node in model.items() if not node["is_observed"]]
    for name in latents:
        if name not in guide and is_enumerated(model[name]):
            raise PairError(
                f"the latent {name!r} is enumerated in the model and absent from the guide, so "
                "that no draw has a log weight: sum it out in the model (a mixture "
                f"distribution), or sample {name!r} in the guide"
            )
        if name not in guide:
            raise PairError(
                f"the model draws the latent {name!r}, the guide does not: it would silently be "
                f"drawn from its prior. Sample {name!r} in the guide, or observe it in the model"
            )
    for name, node in guide.items():
        if name not in model and not node["infer"].get("is_auxiliary", False):
            raise PairError(
                f"the guide draws {name!r}, which the model does not have: name it as in the "
                "model, or mark it by infer={'is_auxiliary': True}"
            )
    if len(latents) == len(model):
        raise PairError(
            "the model has no observed site, so that there is no likelihood: give one of its "
            "pyro.sample statements the data by obs="
        )


def is_enumerated(node: Any) -> bool:
    """Return whether a site is marked for `TraceEnum_ELBO` to sum out."""
    return node["infer"].get("enumerate") == "parallel"


def values_of(trace: poutine.Trace) -> dict[str, Any]:
    """Return the values of a trace's sample sites and the indices of its plates."""
    return {name: node["value"] for name, node in trace.nodes.items() if node["type"] == "sample"}


def sample_sites(trace: poutine.Trace) -> list[tuple[str, Any]]:
    """Return the sites that have a density of their own; `pyro.deterministic` has none."""
    return [
        (name, node)
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and not site_is_subsample(node)
        and not (node["infer"] or {}).get("_deterministic", False)
    ]


def frames_of(node: Any) -> list[Any]:
    """Return the vectorized plates of a site from left to right, the plate of draws left out."""
    frames = [f for f in node["cond_indep_stack"] if f.vectorized and f.name not in PARTICLE_PLATES]
    return sorted(frames, key=lambda frame: frame.dim)


def dims_of(frames: list[Any]) -> list[int]:
    """Return the dimensions of plates, counted from the right."""
    return [frame.dim for frame in frames]


def plate_nesting(*traces: poutine.Trace) -> int:
    """Return how many batch dimensions the plates of traced programs take."""
    nodes = [node for trace in traces for _, node in sample_sites(trace)]
    return -min((dim for node in nodes for dim in dims_of(frames_of(node))), default=0)


def split_shape(shape: torch.Size, event_dim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split a shape into its batch and its event dimensions."""
    return tuple(shape[: len(shape) - event_dim]), tuple(shape[len(shape) - event_dim :])


def stack(runs: list[Sites]) -> Sites:
    """Put runs of one draw each together."""
    return {
        name: replace(
            site,
            value=site.value if site.observed else torch.cat([run[name].value for run in runs]),
            log_prob=torch.cat([run[name].log_prob for run in runs]),
        )
        for name, site in runs[0].items()
    }
