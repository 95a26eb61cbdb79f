"""The state of a training run that a checkpoint contains."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.checkpointing.identity import Identity
from pyro_vae.runtime.files import JSONObject

# Values of `Progress.stopped`: after all epochs, or if a callback asked for it. With more epochs,
# such a run continues.
FINISHED, CALLBACK = "finished", "callback"


@dataclass
class Progress:
    """Counters and history of a run, stored as JSON.

    Attributes:
        epoch: Number of the current epoch, from 1.
        batch: Number of batches of the epoch that were trained on.
        step: Number of steps of the run.
        first: Training objective of the first step, before any update.
        total: Sum of the objective over the data of the epoch.
        num_seen: Number of data of the epoch that were trained on.
        rate_factor: Factor of the learning rate: halved by each backtrack. As a power of two it
            can be divided by exactly.
        num_averaged: Number of steps in the average of the weights.
        history: One entry for each closed epoch.
        best: The entry of the best epoch.
        best_checkpoint: Name of the checkpoint of the best epoch.
        stopped: Reason why the run ended, or None.
        seconds: Duration of the run, without pauses.
        epoch_seconds: Duration of the part of the epoch before this checkpoint.
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0
    first: float | None = None
    total: float = 0.0
    num_seen: int = 0
    rate_factor: float = 1.0
    num_averaged: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    best_checkpoint: str | None = None
    stopped: str | None = None
    seconds: float = 0.0
    epoch_seconds: float = 0.0


class TrainingStep(Protocol):
    """The state of an `SVI` with a torch optimizer."""

    optim: Any
    parameters: dict[Tensor, None]
    trained: set[Tensor]

    @property
    def objective(self) -> object:
        """The objective, which may wrap others."""

    @property
    def update_outside(self) -> bool:
        """Whether the optimizer updates parameters outside of compiled steps."""

    @update_outside.setter
    def update_outside(self, value: bool) -> None: ...


class Rates(Protocol):
    """A learning rate schedule that can be set to a step.

    Attributes:
        total_steps: Number of steps of the run.
        unscheduled: Settings of each parameter group before its first step.
    """

    total_steps: int
    unscheduled: list[dict[str, object]]

    def reset(self, optimizer: Optimizer, step: int, factor: float) -> None:
        """Set the schedule to a step and multiply its learning rates by a factor."""

    def sampled(self, optimizer: Optimizer) -> list[list[float]]:
        """Return learning rates at steps spread over the run."""


class Resumable(Protocol):
    """The state of a run that a checkpoint contains.

    Attributes:
        generator: Generator of the order of the data and of their binarization.
        order_state: State of the generator before the order of the epoch was drawn.
        progress: Counters and history.
        best: Parameters and buffers in the best epoch, by name.
        average: Parameters and buffers, each with its average over training steps. Buffers that
            the program has replaced since then have none.
        loader_state: States of the generators of a `DataLoader` at the start of the epoch.
        settings: Settings and fingerprint of the run, in their JSON form.
        identity: Settings, constants and code that the programs read.
        late: Names of restored parameters that have not yet appeared in the programs.
        compilation_then: Result of `compilation` then; None in a checkpoint of an older version.
    """

    generator: torch.Generator
    order_state: Tensor
    progress: Progress
    best: dict[str, Tensor]
    average: list[tuple[Tensor, Tensor]]
    loader_state: JSONObject
    settings: JSONObject
    identity: Identity
    late: set[str]
    compilation_then: JSONObject | None

    @property
    def svi(self) -> TrainingStep:
        """The training step."""

    @property
    def rates(self) -> Rates:
        """The learning rate schedule."""

    def settings_of(self, then: JSONObject) -> JSONObject:
        """Return the settings of this run with the number of epochs of an earlier part of it."""

    def compilation(self) -> JSONObject:
        """Return for which sizes of minibatches there are compiled programs."""

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers by name, each once."""
