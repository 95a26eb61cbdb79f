"""Announce training steps that cost much more than the networks on the batch.

Log densities can multiply costs: a `VampPrior` evaluates the guide's density of each sample for
each pseudo-input.
"""

import contextlib
import time
import warnings

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.distributed import is_first
from pyro_vae.pairs.allocations import FEW, MORE, allocations, extrapolated_peak
from pyro_vae.pairs.plates import MISFITS
from pyro_vae.pairs.sites import parameters_of
from pyro_vae.pairs.state import unchanged
from pyro_vae.runtime.random_state import preserved_state
from pyro_vae.svi import SVI

# A step is announced if it allocates more than 20 times what guide and model allocate without their
# log densities, and at least 128 MB, which takes some 20 ms.
MOST_TIMES = 20
LEAST_BYTES = 2**27


class CostWarning(UserWarning):
    """A training step costs much more than the networks on the batch.

    Example:
        >>> import warnings
        >>> import torch
        >>> import pyro_vae as pv
        >>> vae = pv.suggest(pv.data.as_dataset(torch.rand(40, 3)), show=False)
        >>> with warnings.catch_warnings():  # raise an error before a long run
        ...     warnings.simplefilter("error", pv.CostWarning)
        ...     fit = pv.fit(vae, torch.rand(40, 3), epochs=1)

    See also: `pyro_vae.fit`.
    """


def announce_cost(svi: SVI, data: Dataset, batch_size: int, num_steps: int) -> None:
    """Estimate a step's time and memory from steps on a few data; warn if they are unusual.

    Parameters, buffers and random states are unchanged.

    Args:
        svi: Training step.
        data: Training data.
        batch_size: Number of data in a minibatch.
        num_steps: Number of steps of the run.

    Warns:
        CostWarning: If a step allocates more than 20 times the memory of model and guide alone.
    """
    if batch_size < MORE:
        return
    # A pair that accepts no other number of data than its own is not measured.
    message = ""
    with (
        contextlib.suppress(*MISFITS),
        unchanged(svi.model, svi.guide),
        warnings.catch_warnings(action="ignore"),
    ):
        message = _message(svi, data, batch_size, num_steps)
    if message and is_first():
        warnings.warn(message, CostWarning, stacklevel=6)  # the caller of `fit`


def _message(svi: SVI, data: Dataset, batch_size: int, num_steps: int) -> str:
    """Return the announcement; empty if a step costs no more than usual.

    The plain ELBO of one particle is measured, because an objective may count its calls.
    """

    def step(count: int) -> list[Tensor]:
        with poutine.trace(param_only=True) as traced:
            loss = Trace_ELBO().differentiable_loss(svi.model, svi.guide, *data.batch(slice(count)))
        parameters = parameters_of(traced.trace)
        torch.autograd.grad(loss, parameters, allow_unused=True)
        return parameters

    def programs(count: int) -> None:
        batch = data.batch(slice(count))
        guide = poutine.trace(svi.guide).get_trace(*batch)
        poutine.trace(poutine.replay(svi.model, trace=guide)).get_trace(*batch)

    particles = getattr(svi.objective, "num_particles", 1)
    more = allocations(step, MORE)
    if particles * more.total * batch_size < LEAST_BYTES * MORE:
        return ""
    few = allocations(step, FEW)
    per_datum = (more.total - few.total) / (MORE - FEW)
    total = more.total + per_datum * (batch_size - MORE)
    alone = [allocations(programs, count).total for count in (FEW, MORE)]
    with preserved_state():
        count = min(batch_size, max(MORE, int(MORE * LEAST_BYTES / more.total)))
        start = time.perf_counter()
        weights = step(count)
        seconds = particles * (time.perf_counter() - start)
    gradients = sum(p.numel() * p.element_size() for p in weights)
    base = gradients + batch_size * (alone[1] - alone[0]) / (MORE - FEW)
    if particles * total < LEAST_BYTES or total < MOST_TIMES * base:
        return ""
    seconds *= total / (more.total + per_datum * (count - MORE))
    peak = particles * extrapolated_peak(few, more, batch_size) / 2**30
    return (
        f"a step takes about {seconds:.2g} s and {peak:.2g} GB and allocates {total / base:.0f} "
        f"times as much as model and guide without their log densities; {num_steps:,} steps take "
        f"about {num_steps * seconds / 60:.2g} minutes. A prior of many components, such as a "
        "VampPrior with a flow guide, multiplies the cost: use fewer components, another guide or "
        "a smaller batch_size"
    )
