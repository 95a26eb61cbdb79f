"""Between the shapes that a Pyro program has and `(draws, *plates, *event)`."""

from dataclasses import dataclass, field
from typing import Any

from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.pairs.pair import PairError
from pyro_vae.pairs.sites import SiteDraws, Sites, dims_of, frames_of, sample_sites, split_shape


@dataclass
class PlateAxes:
    """Where the plates of two programs are, and where their draws.

    Attributes:
        frames: the plates of each site from left to right.
        nesting: number of batch dimensions that the plates take.
        data_dim: dimension of the plate over the data, counted from the right.
        vectorized: draws stand in one more plate on the left.
        tiled: draws stand in the plate over the data, which are repeated for each of them.
    """

    frames: dict[str, list[Any]] = field(default_factory=dict)
    nesting: int = 0
    data_dim: int = 0
    vectorized: bool = False
    tiled: bool = False

    def to_program(self, name: str, value: Tensor) -> Tensor:
        """Give `(draws, *plates, *event)` the shape that the site has in its program."""
        frames = self.frames[name]
        depth = self.nesting if self.vectorized or self.tiled else -min(dims_of(frames), default=0)
        batch_shape = [1] * depth
        for dim, size in zip(dims_of(frames), value.shape[1:], strict=False):
            batch_shape[dim] = size
        value = value.reshape(len(value), *batch_shape, *value.shape[1 + len(frames) :])
        if self.vectorized:
            return value
        if self.tiled:  # the data's plate holds all draws of all data
            data = 1 + depth + self.data_dim
            return value.movedim(0, data - 1).flatten(data - 1, data)
        return value[0]

    def collect(self, trace: poutine.Trace, num_draws: int) -> Sites:
        """Arrange the values and log densities of a trace's sample sites.

        Raises:
            PairError: when a site has a batch dimension that no plate explains.
        """
        sites = {}
        for name, node in sample_sites(trace):
            fn: Any = node["fn"]
            observed = node["is_observed"]
            log_prob = scale_and_mask(fn.log_prob(node["value"]), 1.0, node["mask"])
            value = self._arrange(name, node, node["value"], fn.event_dim, num_draws)
            sites[name] = SiteDraws(
                value=value[:1] if observed else value,
                log_prob=self._arrange(name, node, log_prob, 0, num_draws),
                plates=tuple(frame.name for frame in frames_of(node)),
                observed=observed,
                distribution=fn,
            )
        return sites

    def _arrange(
        self, name: str, node: Any, values: Tensor, event_dim: int, num_draws: int
    ) -> Tensor:
        """Give what a program has for a site the shape `(draws, *plates, *event)`."""
        batch, event = split_shape(values.shape, event_dim)
        frames = frames_of(node)
        depth = max(self.nesting + self.vectorized, len(batch))
        full = [1] * depth
        if self.vectorized:
            full[-1 - self.nesting] = num_draws
        for frame in frames:
            full[frame.dim] = frame.size
        batch = (1,) * (depth - len(batch)) + batch
        if any(size not in (1, most) for size, most in zip(batch, full, strict=True)):
            raise PairError(
                f"site {name!r} has batch shape {batch}, of which its plates "
                f"{[frame.name for frame in frames]} explain {tuple(full)}: put the other "
                "dimensions into a pyro.plate, or declare them as one event by .to_event()"
            )
        values = values.reshape(batch + event).expand((*full, *event))
        if self.tiled:
            data = depth + self.data_dim
            values = values.unflatten(data, (num_draws, -1)).movedim(data, 0)
        draws = num_draws if self.vectorized or self.tiled else 1
        sizes = [frame.size for frame in frames]
        if self.tiled:
            sizes = [
                frame.size // num_draws if frame.dim == self.data_dim else frame.size
                for frame in frames
            ]
        return values.reshape(draws, *sizes, *event)
