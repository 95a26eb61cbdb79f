"""Runs any model/guide pair over many draws and data, in bounded memory.

The model and the guide meet in one array, for draws z_s ~ q(z|x_n):

    log_weights[s, n] = log p(x_n, z_s) - log q(z_s|x_n)          shape (num_samples, num_data)

Its mean over s estimates the ELBO (Kingma & Welling 2013, eq. 2), its log-mean-exp the
importance-weighted bound and log p(x) (Burda et al. 2015, eq. 8), its tail says how far either can
be trusted. Every bound, score and diagnostic of the package reads this array.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.checks import PairError, PairLike
from pyro_vae.parts import evaluating

# Elements of the largest array of one chunk: 8 MB of float32, so that a chunk of the decoder's
# output and its log density stay near the processor's cache.
CHUNK_ELEMENTS = 2**21
# Draws of one datum that are evaluated together: enough to make the encoder's share negligible.
CHUNK_DRAWS = 128
# Plates over draws, of this module and of Pyro's vectorized ELBOs: no data stand in them.
PARTICLE_PLATES = ("_draws", "num_particles_vectorized")


@dataclass(frozen=True)
class Draws:
    """Draws from the guide with their log densities, in nats, each of shape `(draws, data)`.

    `latents` holds the draws themselves by site name, shape `(draws, data, *event)`.
    """

    latents: dict[str, Tensor]
    log_likelihood: Tensor
    log_prior: Tensor
    log_q: Tensor

    @property
    def log_weights(self) -> Tensor:
        """Return log p(x, z) - log q(z|x), shape `(draws, data)`."""
        return self.log_likelihood + self.log_prior - self.log_q


class Sampler:
    """Draws from a pair's guide, with the log densities of guide and model, on any data.

    The draws of a batch stand in one more plate on the left, where the programs allow it. A
    decoder that mixes up leading dimensions does not; then the data are repeated instead, once for
    each draw. Which of the two serves is found out on two data. Modules are in evaluation mode.

    Args:
        pair: anything with `.model` and `.guide`; every latent and observed site stands in the
            plate over the data.
        x: some data, shape `(num_data, *event)`.

    Raises:
        PairError: when a site stands outside the plate over the data.
    """

    def __init__(self, pair: PairLike, batch: Tensor | tuple[Tensor, ...]) -> None:
        self.pair = pair
        few = tuple(rows[:2] for rows in (batch if isinstance(batch, tuple) else (batch,)))
        with torch.random.fork_rng(), torch.no_grad():
            self.nesting = _plate_nesting(self._run(*(rows[:1] for rows in few)))
            self.vectorized = True
            try:
                self.draw(few, 3)
            except (RuntimeError, ValueError, IndexError):
                self.vectorized = False
                self.draw(few, 3)

    @torch.no_grad()
    def draw(self, batch: Tensor | tuple[Tensor, ...], num_samples: int) -> Draws:
        """Draw z `num_samples` times for each datum of a batch, all at once."""
        args = batch if isinstance(batch, tuple) else (batch,)
        x, num_data = args[0], len(args[0])
        if self.vectorized:
            with pyro.plate("_draws", num_samples, dim=-1 - self.nesting):
                guide, model = self._run(*args)
        else:
            guide, model = self._run(
                *(rows.repeat(num_samples, *(1,) * (rows.dim() - 1)) for rows in args)
            )

        def arrange(values: Tensor, event_dim: int) -> Tensor:
            event_shape = values.shape[values.dim() - event_dim :]
            return values.reshape(num_samples, num_data, *event_shape)

        size = num_data if self.vectorized else num_data * num_samples
        latents = {}
        log_q, log_prior, log_likelihood = (x.new_zeros(num_samples, num_data) for _ in range(3))
        for name, node in _sample_sites(guide):
            latents[name] = arrange(node["value"], node["fn"].event_dim)
            log_q = log_q + arrange(self._log_density(name, node, size), 0)
        for name, node in _sample_sites(model):
            log_density = arrange(self._log_density(name, node, size), 0)
            if node["is_observed"]:
                log_likelihood = log_likelihood + log_density
            else:
                log_prior = log_prior + log_density
        return Draws(latents, log_likelihood, log_prior, log_q)

    def log_weights(self, batch: Tensor | tuple[Tensor, ...], num_samples: int) -> Draws:
        """Return the log densities of `num_samples` draws for each datum, chunk by chunk.

        As `draw`, but the draws themselves are let go: `latents` is empty.
        """
        parts = []
        for start in range(0, num_samples, CHUNK_DRAWS):
            part = self.draw(batch, min(CHUNK_DRAWS, num_samples - start))
            parts.append((part.log_likelihood, part.log_prior, part.log_q))
        return Draws({}, *(torch.cat(terms) for terms in zip(*parts, strict=True)))

    def _run(self, *batch: Tensor) -> tuple[poutine.Trace, poutine.Trace]:
        """Trace the guide on x, and the model on the guide's draws."""
        with evaluating(self.pair.model, self.pair.guide), pyro.validation_enabled(False):
            guide = poutine.trace(self.pair.guide).get_trace(*batch)
            model = poutine.trace(poutine.replay(self.pair.model, trace=guide)).get_trace(*batch)
        return guide, model

    def _log_density(self, name: str, node: Any, num_data: int) -> Tensor:
        """Return a site's log density, shape `(draws, data)`, whatever minibatch scale is on it."""
        frame = data_frame(node, num_data)
        if frame is None:
            raise PairError(
                f"site {name!r} stands outside the plate over the {num_data} data, so that it has "
                "no log weight per datum: put it into pyro.plate('data', len(x))"
            )
        log_prob = node["fn"].log_prob(node["value"])
        if node["mask"] is not None:
            log_prob = log_prob * node["mask"]
        dims = self.nesting + self.vectorized
        log_prob = log_prob.reshape((1,) * (dims - log_prob.dim()) + log_prob.shape)
        others = [dim for dim in range(-self.nesting, 0) if dim != frame.dim]
        return log_prob.sum(others) if others else log_prob


def data_per_chunk(event_shape: Iterable[int], num_samples: int) -> int:
    """Return how many data of this shape `log_weights` should take at a time."""
    rows = max(1, CHUNK_ELEMENTS // max(1, math.prod(event_shape)))
    return max(1, rows // min(num_samples, CHUNK_DRAWS))


def data_frame(node: Any, num_data: int) -> Any:
    """Return the frame of the plate over the data that a site stands in, or None.

    It is the plate called `"data"`, or else the outermost one of the batch's size.
    """
    frames = [frame for frame in node["cond_indep_stack"] if frame.name not in PARTICLE_PLATES]
    named = [frame for frame in frames if frame.name == "data"]
    sized = [frame for frame in frames if frame.size == num_data]
    return (named or sized or [None])[0]


def _sample_sites(trace: poutine.Trace) -> list[tuple[str, Any]]:
    return [
        (name, node)
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node)
    ]


def _plate_nesting(traces: tuple[poutine.Trace, poutine.Trace]) -> int:
    """Return how many batch dimensions the plates of the traced programs take."""
    dims = [
        frame.dim
        for trace in traces
        for _, node in _sample_sites(trace)
        for frame in node["cond_indep_stack"]
        if frame.vectorized and frame.dim is not None
    ]
    return -min(dims, default=-1)
