"""Check the arguments of `fit` and prepare a run: data, training step, seeds, output folder."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
import torch
from pyro.infer import ELBO, ReweightedWakeSleep, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.optim import PyroOptim
from torch import nn
from torch.optim import Optimizer

from pyro_vae import schedules
from pyro_vae.arguments import (
    Count,
    FilePath,
    Instance,
    Number,
    Positive,
    Seed,
    check_all,
    checks_of,
)
from pyro_vae.checkpointing.earlier_results import HISTORY
from pyro_vae.checkpointing.model_folder import architecture_of, results_folder
from pyro_vae.data.any_data import Data
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError
from pyro_vae.data.sources.column_order import ColumnOrder
from pyro_vae.distributed import check_same, from_first, own_device, world_size
from pyro_vae.engine.inductor import can_compile
from pyro_vae.engine.torch_optim import OptimizerFactory, TorchOptim
from pyro_vae.objectives.annealing import Beta
from pyro_vae.objectives.nats_per_datum import has_value, is_elbo, objectives_of, per_datum
from pyro_vae.pairs.check import check_data
from pyro_vae.pairs.checked_rows import CheckedRows
from pyro_vae.pairs.guides import without_observations
from pyro_vae.pairs.inputs import dataset_of, keep_order
from pyro_vae.pairs.ownership import claim_parameters
from pyro_vae.pairs.pair import PairError, PairLike, Program
from pyro_vae.pairs.particles import accepts_particles
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.pairs.site_table import SiteTable
from pyro_vae.pairs.state import create_parameters, restored
from pyro_vae.part import Part
from pyro_vae.runtime.devices import Device, device_of, resolve_device
from pyro_vae.runtime.files import JSONObject
from pyro_vae.svi import SVI, Compile, Precision, is_own
from pyro_vae.tracking import AnyTracker
from pyro_vae.training.averaging import Kind
from pyro_vae.training.last_batch import check_last_batch
from pyro_vae.training.learning_rate import Schedule
from pyro_vae.training.step_cost import announce_cost

# Compiling takes about ten seconds, and a compiled step saves one or two milliseconds.
STEPS_WORTH_COMPILING = 5000

Objective: TypeAlias = Annotated[
    ELBO, Instance((ELBO,), "an objective, a pyro.infer.ELBO such as Trace_ELBO()")
]
Optim: TypeAlias = Annotated[
    Optimizer | OptimizerFactory,
    Instance(
        (Optimizer,),
        "a torch optimizer, or a function of a list of parameters that returns one",
        functions=True,
        factories=True,
        hint="for example, functools.partial(torch.optim.Adam, lr=1e-3)",
    ),
]
AnySchedule: TypeAlias = Annotated[
    Schedule,
    Instance((), "a function of an optimizer and the number of steps", functions=True),
]
Callback: TypeAlias = Annotated[
    Callable[[dict[str, float]], object],
    Instance((), "a function of an entry of the history", functions=True, num_inputs=1),
]
Seconds: TypeAlias = Annotated[float, Number(minimum=0, finite=False)]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """The settings of `fit`, in five groups. See `fit` for each of them."""

    # What is trained
    objective: Objective | None = None
    num_particles: Count = 1
    optimizer: Optim | None = None
    learning_rate: Positive = 1e-3
    schedule: AnySchedule | None = None
    average: Kind = None
    # How long
    epochs: Count = 20
    batch_size: Count = 128
    drop_last: bool = False
    patience: Count | None = None
    seed: Seed = 0
    # Where
    device: Device | None = None
    compile: Compile = "auto"
    precision: Precision = "fp32"
    progress: bool | None = None
    # What is kept
    out: FilePath | None = None
    resume: bool = False
    checkpoint_seconds: Seconds = 60.0
    on_nan: Literal["stop", "backtrack"] = "stop"
    # Who watches
    callback: Callback | None = None
    tracker: AnyTracker | None = None

    @classmethod
    def checked(cls, *, has_validation: bool, **settings: Any) -> Self:
        """Return the settings if they are consistent. Nothing else is read or changed.

        Args:
            has_validation: Whether the run has validation data.
            **settings: Fields of the class.

        Raises:
            ValueError: If a setting has an invalid value, or two settings exclude each other.
        """
        check_all(checks_of(cls.__init__), settings)
        config = cls(**settings)
        if config.patience is not None and not has_validation:
            raise ValueError(
                "patience needs validation data: pass validation=, or leave patience out"
            )
        if config.objective is not None and config.num_particles != 1:
            raise ValueError("num_particles belongs to the objective: pass objective=Trace_ELBO(L)")
        if config.resume and config.out is None:
            raise ValueError("resume=True needs the folder of the run: pass out=")
        return config

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether the run writes checkpoints, to `out` or to a temporary folder."""
        return self.out is not None or self.on_nan == "backtrack"


@dataclass(frozen=True)
class Job:
    """Everything that a run needs and does not change.

    Attributes:
        config: Settings of `fit`.
        pair: Model and guide, or an `SVI` of them.
        svi: Training step, with a loss in nats per datum.
        is_elbo: Whether minus this loss estimates the ELBO.
        train: Training data on the device.
        validation: Validation data on the device, or None.
        checked: The training data, checked against the likelihood's support.
        checked_validation: The validation data, checked in the same way, or None.
        sampler: Scores the validation data; None without them.
        batch_size: Number of data in a minibatch.
        total_steps: Number of steps of the run.
        folder: Output folder, or None.
        data_seed: Seed of the order of the data and of their binarization, for all processes.
        noise_seeds: Seed of the noise of each process. Validation uses the first one.
        settings: Settings that the result and the fingerprint contain.
    """

    config: FitConfig
    pair: PairLike | SVI
    svi: SVI
    is_elbo: bool
    train: Dataset
    validation: Dataset | None
    checked: CheckedRows
    checked_validation: CheckedRows | None
    sampler: Sampler | None
    batch_size: int
    total_steps: int
    folder: Path | None
    data_seed: int
    noise_seeds: tuple[int, ...]
    settings: JSONObject

    @property
    def programs(self) -> tuple[Program, Program]:
        """Model and guide. Their parameters and buffers are the weights of the run."""
        return self.pair.model, self.pair.guide

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of an epoch."""
        return self.total_steps // self.config.epochs

    @property
    def runs_steps_only(self) -> bool:
        """Whether no code of the user runs between two steps of an epoch."""
        own = (None, *(getattr(schedules, name) for name in schedules.__all__))
        return (
            type(self.train) is Dataset
            and self.train.in_memory
            and self.config.schedule in own
            and not any(isinstance(objective, Beta) for objective in objectives_of(self.svi))
        )

    @property
    def curve(self) -> str:
        """Name of the training objective in the history."""
        return "train_elbo" if self.is_elbo else "train_objective"


def prepare(pair: PairLike | SVI, train: Data, validation: Data | None, config: FitConfig) -> Job:
    """Move pair and data to the device, check that they fit, and create the training step.

    Raises:
        ValueError: If pair, data and settings do not fit.
        CheckpointError: If the output folder cannot take the results, or the pair cannot be saved.
        DistributedError: If the processes have different settings.
    """
    if not torch.is_grad_enabled():
        raise ValueError(
            "fit trains by gradients, and torch computes none here: call fit outside of "
            "torch.no_grad() and torch.inference_mode()"
        )
    programs = (pair.model, pair.guide)
    kind = device_of(*programs) if config.device is None else resolve_device(config.device)
    device = own_device(kind)
    for program in programs:
        if isinstance(program, nn.Module):
            program.to(device)
    data = dataset_of(pair, train, device)
    order = ColumnOrder.of(data.schema)
    held_out = None if validation is None else dataset_of(pair, validation, device, order)
    batch_size = data.training_batch_size(config.batch_size)
    total_steps = config.epochs * _steps_per_epoch(data, batch_size, config.drop_last)
    svi, table = _per_datum_svi(pair, data, batch_size, total_steps, config)
    checked = CheckedRows(pair, data, gradients=True)
    sampler = checked_validation = None
    if held_out is not None:
        check_data(pair, held_out, objective=svi.objective)
        checked_validation = CheckedRows(pair, held_out)
        with restored(pair.model, pair.guide):
            sampler = Sampler(pair, held_out.batch(slice(2)), given_globals=True)
    folder = _output_folder(pair, svi, config)
    # The order of the data is common to all processes; each process has its own noise.
    states = np.random.SeedSequence(config.seed).generate_state(1 + world_size(), np.uint64)
    settings = _settings(data, svi, batch_size, str(kind), config)
    check_same("settings", settings)
    announce_cost(svi, data, batch_size, total_steps)
    keep_order(pair, data)
    return Job(
        config=config,
        pair=pair,
        svi=svi,
        is_elbo=is_elbo(svi.objective) and not table.weighted,
        train=data,
        validation=held_out,
        checked=checked,
        checked_validation=checked_validation,
        sampler=sampler,
        batch_size=batch_size,
        total_steps=total_steps,
        folder=folder,
        data_seed=int(states[1]),
        noise_seeds=tuple(int(seed) for seed in np.delete(states, 1)),
        settings=settings,
    )


def _settings(
    data: Dataset, svi: SVI, batch_size: int, device: str, config: FitConfig
) -> JSONObject:
    """Return the settings of a run, for its results and for comparison among processes."""
    return {
        "dataset": data.name,
        "binarization": data.binarization,
        "num_train": len(data),
        "epochs": config.epochs,
        "batch_size": batch_size,
        **({"drop_last": True} if config.drop_last else {}),
        **({"average": config.average} if config.average else {}),
        "objective": type(svi.objective).__name__,
        "num_particles": getattr(svi.objective, "num_particles", 1),
        "seed": config.seed,
        "device": device,
        "precision": svi.precision,
    }


def _output_folder(pair: PairLike | SVI, svi: SVI, config: FitConfig) -> Path | None:
    """Create the output folder. Fail now, not after training, if the results cannot be saved."""
    if not isinstance(svi.optim, TorchOptim):
        raise ValueError(
            "fit needs a torch optimizer for its learning rate and checkpoints, got one of "
            "pyro.optim: pass, for example, functools.partial(torch.optim.Adam, lr=1e-3) as "
            "optimizer= or to pv.SVI"
        )
    out = config.out
    if out is None:
        return None
    if isinstance(pair, Part):
        architecture_of(pair)
    return from_first(lambda: results_folder(out, [HISTORY], model=isinstance(pair, Part)))


def _steps_per_epoch(data: Dataset, batch_size: int, drop_last: bool) -> int:
    """Return the number of steps of an epoch.

    Raises:
        DataError: If `drop_last` leaves no batch, or the data are a loader.
    """
    if not drop_last:
        return data.num_batches(batch_size)
    if data.loader is not None:
        raise DataError(
            "drop_last=True cannot change the batches of a DataLoader: pass drop_last=True to the "
            "DataLoader"
        )
    return len(data) // batch_size  # at least 1: batches are not larger than the data


def _per_datum_svi(
    pair: PairLike | SVI, data: Dataset, batch_size: int, total_steps: int, config: FitConfig
) -> tuple[SVI, SiteTable]:
    """Check a pair against its data; return its training step in nats per datum, and its sites."""
    optim: PyroOptim | Optimizer | OptimizerFactory
    guide, compile, precision = pair.guide, config.compile, config.precision
    guide = without_observations(guide)
    if isinstance(pair, SVI):
        own = config.objective is None and config.optimizer is None and config.num_particles == 1
        if not own or compile != "auto" or precision != "fp32":
            raise ValueError(
                "an SVI has its own objective, optimizer, compile and precision: pass them to "
                "pv.SVI"
            )
        bound, optim = pair.objective, pair.optim
        compile, precision = pair.compile, pair.precision
    else:
        # Particles are a plate on the left if the networks take any leading dimensions.
        particles = config.num_particles
        bound = config.objective or Trace_ELBO(particles, vectorize_particles=particles > 1)
        adam = functools.partial(torch.optim.Adam, lr=config.learning_rate, fused=True)
        optim = config.optimizer or adam
    several = isinstance(bound, ReweightedWakeSleep)
    if several or not has_value(bound):
        lacks = "has several losses" if several else "only computes gradients"
        raise ValueError(
            "fit needs an objective with one value, for the history and to detect a failed step, "
            f"but {type(bound).__name__} {lacks}: train with pv.SVI(model, guide, optim, loss).step"
            ", or pass objective=pv.objectives.ImportanceWeighted(K)"
        )
    if compile == "auto":
        own = is_own(pair.model, pair.guide)
        compile = own and total_steps >= STEPS_WORTH_COMPILING and can_compile()
    table = check_data(pair, data, objective=bound, scales=True)
    if table.shared_sums and total_steps > config.epochs:
        raise PairError(
            f"the model sums out {list(table.shared_sums)}, shared by all data, so the bound is no "
            f"sum over data, and {batch_size} of {len(data)} data do not give an estimate of it: "
            f"train on all data with batch_size={len(data)}, or sample the latent in the guide"
        )
    create_parameters(pair.model, pair.guide, data.batch(slice(8)))
    claim_parameters(pair.model, pair.guide)
    if not isinstance(pair, SVI) and isinstance(getattr(bound, "objective", bound), TraceEnum_ELBO):
        # All values in one more dimension on the left, or one run of the programs for each.
        few = data.batch(slice(8))
        parallel = accepts_particles(pair.model, pair.guide, few, {})
        guide = config_enumerate(guide, "parallel" if parallel else "sequential", expand=True)
    model, guide = (per_datum(p, len(data), *table.data_plates) for p in (pair.model, guide))
    svi = SVI(model, guide, optim, bound, compile=compile, precision=precision)
    svi.take_steps_again()
    svi.choose_particles(data.batch(slice(8)), {})
    svi.nest_plates(table.plate_nesting)
    check_last_batch(pair, data, total_steps // config.epochs, batch_size)
    return svi, table
