"""Read the sample sites of a traced Pyro program, and set the values of its sites."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

from pyro_vae.distributions.independent import unwrap_independent
from pyro_vae.pairs.pair import PairError

# A site of a trace. Pyro's type `Message` does not declare that `fn` is a distribution.
Node: TypeAlias = Any

DRAWS = "_draws"  # the plate over samples of the latents
# Plates over samples, of this package and of Pyro's vectorized ELBOs. They hold no data.
PARTICLE_PLATES = (DRAWS, "num_particles_vectorized")
WRAPPERS = ExpandedDistribution, MaskedDistribution


@dataclass(frozen=True)
class SiteDraws:
    """Samples of one site.

    Attributes:
        value: Values, shape `(samples, *plates, *event)`. An observed site has the same value for
            every sample: its first dimension has size 1.
        log_prob: Log densities in nats, shape `(samples, *plates)`.
        plates: Names of the plates from left to right.
        observed: Whether the site is observed.
        distribution: Distribution of the site.
        computed: Whether the value is a function of other sites, as in `pyro.deterministic`.
        mask: Elements of a latent that are not masked, of the shape of `value`; None if all are.
    """

    value: Tensor
    log_prob: Tensor
    plates: tuple[str, ...]
    observed: bool
    distribution: Distribution
    computed: bool = False
    mask: Tensor | None = None

    @property
    def is_factor(self) -> bool:
        """Whether the site is a `pyro.factor`, a log density without a value."""
        return type(self.distribution).__name__ == "Unit"

    @property
    def is_delta(self) -> bool:
        """Whether the distribution is a point mass, inside any wrappers."""
        return is_delta(self.distribution)

    @property
    def event_dim(self) -> int:
        """Number of event dimensions."""
        return self.value.dim() - 1 - len(self.plates)

    def rows(self, plate: str) -> Tensor:
        """Return the values with a plate moved to the left.

        The shape is `(samples, plate, *other plates, *event)`.
        """
        return self.value.movedim(1 + self.plates.index(plate), 1)

    def per_datum(self, plate: str) -> Tensor:
        """Return the log density summed over all plates but one, shape `(samples, data)`."""
        others = [1 + i for i, name in enumerate(self.plates) if name != plate]
        log_prob = self._precise()
        return log_prob.sum(others) if others else log_prob

    def joint(self) -> Tensor:
        """Return the log density summed over all plates, shape `(samples,)`."""
        log_prob = self._precise()
        return log_prob.flatten(1).sum(1) if self.plates else log_prob

    def _precise(self) -> Tensor:
        """Return the log density.

        Raises:
            PairError: If it has 16 bits: nats are lost, and more in sums.
        """
        if self.log_prob.dtype in (torch.float16, torch.bfloat16):
            advice = "convert pair and data by .float()"
            if torch.is_autocast_enabled(self.log_prob.device.type):
                advice = "call this outside of torch.autocast"
            raise PairError(
                f"log densities in {self.log_prob.dtype} are rounded to 2 or 3 digits; expected "
                f"torch.float32 or torch.float64: {advice}. SVI(precision='bf16') trains in "
                "bfloat16 with parameters in float32"
            )
        return self.log_prob


Sites: TypeAlias = dict[str, SiteDraws]


class ConditionLatents(Messenger):
    """Set the values of latent sites and of subsampled plates. The sites stay latent.

    Raises:
        PairError: If a program gives a plate other rows by `subsample=`. `poutine.replay` would
            replace them, while the program reads its data at the rows that it gave.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Message) -> None:
        name = str(msg["name"])
        if name in self.values and not msg["is_observed"]:
            if site_is_subsample(msg) and msg["value"] is not None:
                _check_same_rows(name, msg["value"], self.values[name])
            msg["value"], msg["done"] = self.values[name], True


class CheckGivenRows(Messenger):
    """Check that the rows that a model gives by `subsample=` are not replaced, as in a replay.

    Use it as `CheckGivenRows()(model)`, inside of `poutine.replay`.

    Raises:
        PairError: If a plate gets other rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Message) -> None:
        if site_is_subsample(msg) and msg["value"] is not None:
            self.given[str(msg["name"])] = msg["value"]

    def _pyro_post_sample(self, msg: Message) -> None:
        name, value = str(msg["name"]), msg["value"]
        if site_is_subsample(msg) and value is not None and name in self.given:
            _check_same_rows(name, self.given.pop(name), value)


def _check_same_rows(plate: str, given: Tensor, needed: Tensor) -> None:
    if not torch.equal(torch.as_tensor(given).cpu(), torch.as_tensor(needed).cpu()):
        raise PairError(
            f"a program gives the plate {plate!r} its rows by subsample=, but needs to run on "
            "other rows: those of the guide, or each part of the data in turn. Use subsample_size= "
            f"and read the data at the rows of the plate (with pyro.plate({plate!r}, ...) as i: "
            "x[i]), or pass only these rows and let the plate have their number. An AutoGuide "
            "samples other rows than the model unless create_plates= returns the same plate"
        )


def log_density(name: str, node: Node) -> Tensor:
    """Return the log density of a site at its value, without its mask and scale.

    Args:
        name: Name of the site.
        node: The site.

    Raises:
        PairError: If the distribution is a flow that only scores its latest sample.
    """
    try:
        return node["fn"].log_prob(node["value"])
    except (KeyError, NotImplementedError) as error:  # of a transform without an inverse
        kind = type(unwrap_independent(node["fn"], *WRAPPERS)).__name__
        raise PairError(
            f"the {kind} of site {name!r} cannot score the value that it is given: {error}. A flow "
            "scores given values only if its transforms have an inverse, as AffineAutoregressive "
            "and Spline of Pyro, or pv.priors.Flow and pv.guides.Flow"
        ) from error


def is_delta(distribution: Distribution) -> bool:
    """Return whether a distribution is a point mass, inside any wrappers."""
    return point_in(distribution) is not None


def point_in(distribution: Distribution) -> Delta | None:
    """Return the point mass inside any wrappers, or None if the distribution is not one."""
    inner = unwrap_independent(distribution, *WRAPPERS, TransformedDistribution)
    return inner if isinstance(inner, Delta) else None


def subsampled_plates(*traces: poutine.Trace) -> set[str]:
    """Return the names of all plates that are subsampled, sequential plates included."""
    names = set()
    for trace in traces:
        nodes: list[tuple[str, Node]] = list(trace.nodes.items())
        for name, node in nodes:
            if site_is_subsample(node) and len(node["value"]) < node["fn"].size:
                names.add(name)
        for _, node in sample_sites(trace):  # a plate from outside the program has no site
            frames = node["cond_indep_stack"]
            names |= {frame.name for frame in frames if frame.size < full_size_of(frame)}
    return names


class WithoutWeights(Messenger):
    """Drops the weights of `poutine.scale` from log densities, and keeps the scales of plates.

    Use it outside of the program: `WithoutWeights()(model)`.
    """

    def _pyro_sample(self, msg: Message) -> None:
        msg["scale"] = plate_scale(msg)


class SampleData(UnconditionMessenger):
    """Sample the observed sites, except those that record a computed value."""

    def _pyro_sample(self, msg: Message) -> None:
        if not is_computed(msg):
            super()._pyro_sample(msg)


def sample_sites(trace: poutine.Trace) -> list[tuple[str, Node]]:
    """Return the sample sites of a trace, latent and observed, in order.

    Indices of subsampled plates and computed values without a density (`is_deterministic`) are left
    out.
    """
    nodes: list[tuple[str, Node]] = list(trace.nodes.items())
    return [
        (name, node)
        for name, node in nodes
        if node["type"] == "sample" and not site_is_subsample(node) and not is_deterministic(node)
    ]


def deterministic_sites(trace: poutine.Trace) -> list[tuple[str, Node]]:
    """Return the sites of a trace with a computed value and no density, in order."""
    nodes: list[tuple[str, Node]] = list(trace.nodes.items())
    return [(name, node) for name, node in nodes if is_deterministic(node)]


def is_deterministic(node: Node) -> bool:
    """Return whether a site records a computed value (`is_computed`) and has no density.

    These are `pyro.deterministic` sites, and latents that most `Reparam`s of Pyro replace.
    """
    return is_computed(node) and _is_masked(node["fn"])


def is_computed(node: Node) -> bool:
    """Return whether a site records a value that is computed from other sites.

    Such a site is observed, and its distribution is a point mass at this value. It may have a
    density: some `Reparam`s of Pyro pass the log density of the latent to `Delta`.
    """
    if node["type"] != "sample" or not node["is_observed"]:
        return False
    point = unwrap_independent(node["fn"], *WRAPPERS)
    if not isinstance(point, Delta):
        return False
    # A plate expands the point, without a copy.
    return (
        _is_masked(node["fn"])
        or point.v is node["value"]
        or (point.v._base is not None and point.v.data_ptr() == node["value"].data_ptr())
    )


def is_data(node: Node) -> bool:
    """Return whether a site is observed and its value is not computed from other sites."""
    return bool(node["is_observed"]) and not is_computed(node)


def _is_masked(distribution: Distribution) -> bool:
    return isinstance(distribution, MaskedDistribution) and distribution._mask is False


def latent_sites(trace: poutine.Trace) -> list[tuple[str, Node]]:
    """Return the sample sites of a trace that are not observed, in order."""
    return [(name, node) for name, node in sample_sites(trace) if not node["is_observed"]]


def observed_sites(trace: poutine.Trace) -> dict[str, Node]:
    """Return the observed sites of a model by name, in order.

    Raises:
        PairError: If the model has no observed site.
    """
    observed = {name: node for name, node in sample_sites(trace) if is_data(node)}
    if not observed:
        raise PairError("the model has no observed site: pass x as obs= of a pyro.sample")
    return observed


def is_enumerated(node: Node) -> bool:
    """Return whether a site is marked for enumeration by `TraceEnum_ELBO`."""
    return node["infer"].get("enumerate") == "parallel"


def values_of(trace: poutine.Trace) -> dict[str, Tensor]:
    """Return the values of all sample sites of a trace, indices of subsampled plates included."""
    nodes: list[tuple[str, Node]] = list(trace.nodes.items())
    return {name: node["value"] for name, node in nodes if node["type"] == "sample"}


def parameters_of(trace: poutine.Trace) -> list[Tensor]:
    """Return the unconstrained values of the parameters in a trace of these, each once."""
    nodes: list[Node] = list(trace.nodes.values())
    return list(dict.fromkeys(node["value"].unconstrained() for node in nodes))


def frames_of(node: Node) -> list[CondIndepStackFrame]:
    """Return the vectorized plates of a site from left to right, without the plate of samples."""
    frames = [f for f in node["cond_indep_stack"] if f.vectorized and f.name not in PARTICLE_PLATES]
    return sorted(frames, key=lambda frame: frame.dim)


def dims_of(frames: list[CondIndepStackFrame]) -> list[int]:
    """Return the dimensions of vectorized plates, counted from the right."""
    return [frame.dim for frame in frames if frame.dim is not None]


def full_size_of(frame: CondIndepStackFrame) -> int:
    """Return the size of a plate before subsampling."""
    return frame.size if frame.full_size is None else frame.full_size


def plate_scale(node: Node) -> float:
    """Return the scale of a site's log density by its subsampled plates: N/M for M of N entries."""
    return math.prod(full_size_of(frame) / frame.size for frame in node["cond_indep_stack"])


def weighted_sites(*traces: poutine.Trace) -> tuple[str, ...]:
    """Return the names of the sites whose log density is weighted, as by `poutine.scale`."""
    names: dict[str, None] = {}
    for name, node in [site for trace in traces for site in sample_sites(trace)]:
        scale = torch.as_tensor(node["scale"]).double()
        if not torch.allclose(scale, torch.full_like(scale, plate_scale(node))):
            names[name] = None
    return tuple(names)


def plate_nesting(*traces: poutine.Trace) -> int:
    """Return the number of batch dimensions that the plates of traced programs take."""
    nodes = [node for trace in traces for _, node in sample_sites(trace)]
    return -min((dim for node in nodes for dim in dims_of(frames_of(node))), default=0)


def split_shape(shape: torch.Size, event_dim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split a shape into its batch and event dimensions."""
    return tuple(shape[: len(shape) - event_dim]), tuple(shape[len(shape) - event_dim :])


def stack(runs: list[Sites]) -> Sites:
    """Concatenate runs of one sample each along the dimension of samples."""
    return {
        name: replace(
            site,
            value=site.value
            if site.observed and not site.computed
            else torch.cat([run[name].value for run in runs]),
            log_prob=torch.cat([run[name].log_prob for run in runs]),
            mask=_joined([run[name].mask for run in runs]),
        )
        for name, site in runs[0].items()
    }


def _joined(masks: list[Tensor | None]) -> Tensor | None:
    found = [mask for mask in masks if mask is not None]
    return torch.cat(found) if found else None
