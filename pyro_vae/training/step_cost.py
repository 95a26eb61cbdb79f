"""Announce training steps that cost much more than the networks on the batch.

Log densities can multiply costs: a `VampPrior` evaluates the guide's density of each sample for
each pseudo-input.
"""

import contextlib
import time
import warnings

from pyro import poutine

from pyro_vae.data.dataset import Dataset
from pyro_vae.distributed import is_first
from pyro_vae.pairs.allocations import FEW, MORE, allocations, extrapolated_peak
from pyro_vae.pairs.plates import MISFITS
from pyro_vae.pairs.state import unchanged
from pyro_vae.runtime.random_state import preserved_state
from pyro_vae.svi import SVI

# A step is announced if it allocates more than 20 times what guide and model allocate without their
# log densities, and at least 128 MB, which takes some 20 ms.
MOST_TIMES = 20
LEAST_BYTES = 2**27


class CostWarning(UserWarning):
    """A training step costs much more than the networks on the batch."""


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
        warnings.warn(message, CostWarning, stacklevel=2)


def _message(svi: SVI, data: Dataset, batch_size: int, num_steps: int) -> str:
    def step(count: int) -> None:
        _, parameters = svi.gradients(data.batch(slice(count)), {})
        for parameter in parameters:
            parameter.grad = None

    def programs(count: int) -> None:
        batch = data.batch(slice(count))
        guide = poutine.trace(svi.guide).get_trace(*batch)
        poutine.trace(poutine.replay(svi.model, trace=guide)).get_trace(*batch)

    more = allocations(step, MORE)
    if more.total * batch_size < LEAST_BYTES * MORE:
        return ""
    few = allocations(step, FEW)
    per_datum = (more.total - few.total) / (MORE - FEW)
    total = more.total + per_datum * (batch_size - MORE)
    alone = [allocations(programs, count).total for count in (FEW, MORE)]
    weights = sum(p.numel() * p.element_size() for p in svi.parameters)  # as are their gradients
    particles = getattr(svi.objective, "num_particles", 1)
    base = particles * batch_size * (alone[1] - alone[0]) / (MORE - FEW) + weights
    if total < max(LEAST_BYTES, MOST_TIMES * base):
        return ""
    count = min(batch_size, max(MORE, int(MORE * LEAST_BYTES / more.total)))
    with preserved_state():
        start = time.perf_counter()
        step(count)
        seconds = time.perf_counter() - start
    seconds *= total / (more.total + per_datum * (count - MORE))
    peak = extrapolated_peak(few, more, batch_size) / 2**30
    return (
        f"a step takes about {seconds:.2g} s and {peak:.2g} GB, {total / base:.0f} times as much "
        f"memory traffic as model and guide without their log densities, and {num_steps:,} steps "
        f"take about {num_steps * seconds / 60:.2g} minutes. A prior of many components, such as a "
        "VampPrior with a flow guide, multiplies the cost: use fewer components, another guide or "
        "a smaller batch_size"
    )
