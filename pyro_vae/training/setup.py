"""Check the settings of a run and prepare its SVI."""

import functools
import numbers
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch.optim import Optimizer

from pyro_vae.data.dataset import Dataset
from pyro_vae.engine.inductor import can_compile
from pyro_vae.engine.torch_optim import OptimizerFactory
from pyro_vae.objectives.nats_per_datum import per_datum
from pyro_vae.pairs.check import check_data
from pyro_vae.pairs.pair import PairLike
from pyro_vae.svi import SVI, Compile, Precision, is_own

# Compiling takes ten seconds or so, and a compiled step saves one or two milliseconds.
STEPS_WORTH_COMPILING = 5000


def _per_datum_svi(
    pair: PairLike | SVI,
    data: Dataset,
    total_steps: int,
    objective: ELBO | None,
    num_particles: int,
    optimizer: Optimizer | OptimizerFactory | None,
    learning_rate: float,
    compile: Compile,
    precision: Precision,
) -> SVI:
    """Check a pair; return the step to train it with, its own if it is an `SVI`, per datum."""
    optim: Any
    guide = pair.guide
    if isinstance(pair, SVI):
        own = objective is None and optimizer is None and num_particles == 1
        if not own or compile != "auto" or precision != "fp32":
            raise ValueError(
                "an SVI has its own objective, optimizer, compile and precision: pass them to "
                "pv.SVI"
            )
        bound, optim = pair.objective, pair.optim
        compile, precision = pair.compile, pair.precision
    else:
        # Draws stand in a plate on the left; networks take any leading dimensions.
        bound = objective or Trace_ELBO(num_particles, vectorize_particles=num_particles > 1)
        optim = optimizer or functools.partial(torch.optim.Adam, lr=learning_rate, fused=True)
        if isinstance(getattr(bound, "objective", bound), TraceEnum_ELBO):
            guide = config_enumerate(guide, expand=True)
    if compile == "auto":
        own = is_own(pair.model, pair.guide)
        compile = own and total_steps >= STEPS_WORTH_COMPILING and can_compile()
    table = check_data(pair, data, objective=bound)
    model, guide = (per_datum(p, len(data), *table.data_plates) for p in (pair.model, guide))
    svi = SVI(model, guide, optim, bound, compile=compile, precision=precision)
    svi.nest_plates(table.plate_nesting)
    return svi


def _check_settings(
    epochs: int,
    batch_size: int,
    num_particles: int,
    patience: int | None,
    validation: object,
    objective: ELBO | None,
) -> None:
    for name, value in [
        ("epochs", epochs),
        ("batch_size", batch_size),
        ("num_particles", num_particles),
        ("patience", 1 if patience is None else patience),
    ]:
        if not (isinstance(value, numbers.Real) and value >= 1 and value % 1 == 0):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if patience is not None and validation is None:
        raise ValueError("patience needs validation data: pass validation=, or leave patience out")
    if objective is not None and num_particles != 1:
        raise ValueError("num_particles belongs to the objective: pass objective=Trace_ELBO(L)")
