"""`Fit`: the result of a training run."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Fit:
    """What a training run did; ELBOs are in nats per datum.

    `history` has one entry for each epoch. Its `train_elbo` is the mean over the epoch's steps; an
    objective whose value is not the ELBO (beta, importance-weighted, free bits) is called
    `train_objective` instead, and `validation_elbo` is the ELBO all the same. `best` is the entry
    whose weights the pair now has: the best on validation data, or the last where there were none.
    `stopped` says why the run ended: `"finished"`, `"early stopping"` or `"interrupted"`.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    stopped: str = "finished"
    num_steps: int = 0
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        """Training data seen each second, validation left out."""
        seen = sum(entry["num_data"] for entry in self.history)
        return seen / max(sum(entry["seconds"] for entry in self.history), 1e-9)
