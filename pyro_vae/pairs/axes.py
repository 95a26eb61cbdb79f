"""Convert between the shapes of a Pyro program and `(samples, *plates, *event)`."""

from dataclasses import dataclass, field

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_vae.pairs.masks import element_mask
from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.sites import (
    Node,
    SiteDraws,
    Sites,
    deterministic_sites,
    dims_of,
    frames_of,
    is_computed,
    log_density,
    sample_sites,
    split_shape,
)


def event_dim_of(node: Node) -> int:
    """Return the number of event dimensions of a computed value, given one sample.

    By default, `pyro.deterministic` declares all dimensions of a value as its event, those of the
    plates included. The leading dimensions that match the plates of the site are its batch.
    """
    shape, declared = tuple(node["value"].shape), node["fn"].event_dim
    if declared < len(shape):
        return declared
    frames = frames_of(node)
    sizes = dict(zip(dims_of(frames), [frame.size for frame in frames], strict=True))
    depth = -min(sizes, default=0)
    if len(shape) < depth:
        return 0 if _matches(shape, sizes) else declared
    return len(shape) - depth if _matches(shape[:depth], sizes) else declared


def _matches(batch: tuple[int, ...], sizes: dict[int, int]) -> bool:
    """Return whether a batch shape broadcasts to plates of given sizes, by their dimensions."""
    dims = range(-len(batch), 0)
    return all(size in (1, sizes.get(dim, 1)) for dim, size in zip(dims, batch, strict=True))


@dataclass
class PlateAxes:
    """Dimensions of the plates of a model and its guide, and of the samples.

    Attributes:
        frames: Plates of each site from left to right.
        nesting: Number of batch dimensions that the plates take.
        data_dim: Dimension of the plate over the data, counted from the right.
        vectorized: Whether samples are in one more plate on the left.
        tiled: Whether samples are in the plate over the data, with the data repeated for each.
        event_dims: Number of event dimensions of the sites with a computed value and no density, if
            they are collected.
    """

    frames: dict[str, list[CondIndepStackFrame]] = field(default_factory=dict)
    nesting: int = 0
    data_dim: int = 0
    vectorized: bool = False
    tiled: bool = False
    event_dims: dict[str, int] = field(default_factory=dict)

    def to_program(self, name: str, value: Tensor) -> Tensor:
        """Reshape values `(samples, *plates, *event)` to the shape of the site in its program."""
        frames = self.frames[name]
        depth = self.nesting if self.vectorized or self.tiled else -min(dims_of(frames), default=0)
        batch_shape = [1] * depth
        for dim, size in zip(dims_of(frames), value.shape[1:], strict=False):
            batch_shape[dim] = size
        value = value.reshape(len(value), *batch_shape, *value.shape[1 + len(frames) :])
        if self.vectorized:
            return value
        if self.tiled:  # the plate over the data holds all samples of all data
            data = 1 + depth + self.data_dim
            return value.movedim(0, data - 1).flatten(data - 1, data)
        return value[0]

    def collect(self, trace: poutine.Trace, num_draws: int) -> Sites:
        """Return the values and log densities of a trace's sample sites.

        Raises:
            PairError: If a batch dimension of a site belongs to no plate.
        """
        sites = {}
        for name, node in sample_sites(trace):
            fn, observed = node["fn"], node["is_observed"]
            log_prob = scale_and_mask(log_density(name, node), 1.0, node["mask"])
            value = self._arrange(name, node, node["value"], fn.event_dim, num_draws)
            mask = None if observed else element_mask(node)
            if mask is not None:
                mask = torch.broadcast_tensors(mask.to(node["value"].device), node["value"])[0]
                mask = self._arrange(name, node, mask, fn.event_dim, num_draws)
            sites[name] = SiteDraws(
                value=value[:1] if observed and not is_computed(node) else value,
                log_prob=self._arrange(name, node, log_prob, 0, num_draws),
                plates=tuple(frame.name for frame in frames_of(node)),
                observed=observed,
                distribution=fn,
                computed=is_computed(node),
                mask=mask,
            )
        for name, node in deterministic_sites(trace):
            if name in self.event_dims:
                value = self._arrange(name, node, node["value"], self.event_dims[name], num_draws)
                plates = tuple(frame.name for frame in frames_of(node))
                zero = torch.zeros(value.shape[: 1 + len(plates)], device=value.device)
                sites[name] = SiteDraws(value, zero, plates, True, node["fn"], computed=True)
        return sites

    def _arrange(
        self, name: str, node: Node, values: Tensor, event_dim: int, num_draws: int
    ) -> Tensor:
        """Reshape values of a site in its program to `(samples, *plates, *event)`."""
        batch, event = split_shape(values.shape, event_dim)
        frames = frames_of(node)
        depth = max(self.nesting + self.vectorized, len(batch))
        full = [1] * depth
        if self.vectorized:
            full[-1 - self.nesting] = num_draws
        for frame, dim in zip(frames, dims_of(frames), strict=True):
            full[dim] = frame.size
        batch = (1,) * (depth - len(batch)) + batch
        if any(size not in (1, most) for size, most in zip(batch, full, strict=True)):
            raise PairError(
                f"site {name!r} has batch shape {batch}, but its plates "
                f"{[frame.name for frame in frames]} have shape {tuple(full)}: put the other "
                "dimensions into a pyro.plate, or declare them as one event by .to_event()"
            )
        values = values.reshape(batch + event).expand((*full, *event))
        if self.tiled:
            data = depth + self.data_dim
            inside = any(frame.dim == self.data_dim for frame in frames)
            values = values.unflatten(data, (num_draws if inside else 1, -1)).movedim(data, 0)
            values = values.expand(num_draws, *values.shape[1:])
        draws = num_draws if self.vectorized or self.tiled else 1
        sizes = [frame.size for frame in frames]
        if self.tiled:
            sizes = [
                frame.size // num_draws if frame.dim == self.data_dim else frame.size
                for frame in frames
            ]
        return values.reshape(draws, *sizes, *event)
