"""`Fit`: the result of a training run."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from pyro_vae.arguments import setting
from pyro_vae.checkpointing.earlier_results import HISTORY
from pyro_vae.checkpointing.model_folder import MODEL, save
from pyro_vae.distributed import is_first, world_size
from pyro_vae.pairs.pair import PairLike
from pyro_vae.part import Part
from pyro_vae.runtime.files import CheckpointError, JSONObject, unused
from pyro_vae.runtime.records import record, write_json_result
from pyro_vae.runtime.tables import rendered
from pyro_vae.training.run_state import RunState
from pyro_vae.training.setup import Job
from pyro_vae.training.watching import send_curve

CURVES = ("_elbo", "_objective")  # ends of the names of bounds in an entry of the history


@dataclass(repr=False)
class Fit:
    """The result of `fit`. ELBOs are in nats per datum.

    Printing it shows the reason of the end and the entry of the best epoch.

    Attributes:
        history: One entry for each epoch. `train_elbo` is the mean over the steps of the epoch. If
            the value of the objective is not an ELBO (beta, importance-weighted, free bits), it is
            named `train_objective` instead. `validation_elbo` is always an ELBO.
        best: The entry of the epoch that the weights are of: the best on the validation data, or
            the last one without validation data. With `average`, the weights and their
            `validation_elbo` are those of the averages.
        stopped: Reason why the run ended: `"finished"`, `"early stopping"`, `"callback"` or
            `"interrupted"`.
        num_steps: Number of training steps.
        seconds: Duration of the run, without the pauses between an interruption and a resumption.
        settings: Settings of the run.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> likelihood = pv.likelihoods.Normal(pv.networks.MLP(1, [], (3,)))
        >>> guide = pv.guides.DiagonalNormal(pv.networks.MLP((3,), [], 2))
        >>> vae = pv.VAE(pv.priors.StandardNormal(1), likelihood, guide)
        >>> fit = pv.fit(vae, torch.zeros(10, 3), epochs=2, batch_size=5)
        >>> fit.stopped, fit.num_steps, len(fit.history), fit.best["epoch"]
        ('finished', 4, 2, 2)

    See also: `pyro_vae.fit`, `pyro_vae.report`, `pyro_vae.evaluate`.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    stopped: str = "finished"
    num_steps: int = 0
    seconds: float = 0.0
    settings: JSONObject = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        """Number of training data per second, without the time of validation."""
        seen = sum(entry["num_data"] for entry in self.history)
        return seen / max(sum(entry["seconds"] for entry in self.history), 1e-9)

    def __repr__(self) -> str:
        """Return one line: a history of hundreds of epochs fills pages."""
        names = ("epoch", "train_elbo", "train_objective", "validation_elbo")
        best = [f"{name}: {self.best[name]:.6g}" for name in names if name in self.best]
        return (
            f"Fit({self.stopped}: {len(self.history)} epochs, {self.num_steps:,} steps, "
            f"{self.seconds:.3g} s; best={{{', '.join(best)}}})"
        )

    def __rich__(self) -> Table:
        caption = f"{self.stopped}: {self.num_steps:,} steps in {self.seconds:.1f} seconds"
        if self.best:
            caption += f",\nweights of epoch {self.best['epoch']} of {len(self.history)}"
        table = Table("nats per datum", "value", "standard error", caption=caption)
        for name, value in self.best.items():
            if name.endswith(CURVES):
                error = self.best.get(f"{name}_se")
                table.add_row(name, f"{value:.2f}", "" if error is None else f"{error:.2f}")
        return table

    def __str__(self) -> str:
        return rendered(self, width=80)


def finish(job: Job, state: RunState) -> Fit:
    """Set the pair to its best weights, write the results, and return them.

    Warns:
        UserWarning: If the results cannot be written. The pair keeps its weights.
    """
    if state.writer is not None:
        state.writer.wait()
    state.restore_best()
    progress = state.progress
    assert progress.stopped is not None
    settings = job.settings | {
        "engine": "compiled" if job.svi.num_compiled_steps else "eager",
        "num_processes": world_size(),
    }
    if is_first():
        _warn_if_diverged(job.curve, state)
    fit = Fit(
        progress.history, progress.best, progress.stopped, progress.step, state.seconds, settings
    )
    if job.folder is not None and is_first():
        assert state.writer is not None
        _write_results(job.pair, fit, job.folder, state.writer.store.check_lock)
        if fit.stopped == "interrupted":
            print(
                f"interrupted at step {fit.num_steps}; the last checkpoint in {job.folder} is of "
                f"step {state.writer.saved_step}. To continue, start it again with "
                f"{setting('resume', True)}",
                file=sys.stderr,
            )
    if is_first():
        send_curve(job, fit.history)
    return fit


def _warn_if_diverged(curve: str, state: RunState) -> None:
    """Warn if the training objective of the weights is much lower than it has been.

    Much lower is by more than 1 nat per datum, and by more than the absolute value of the best.
    """
    best, first = state.progress.best, state.progress.first
    if not best or int(best["epoch"]) <= state.annealed:
        return
    compared = [entry for entry in state.progress.history if entry["epoch"] > state.annealed]
    values = {f"in epoch {entry['epoch']}": entry[curve] for entry in compared}
    if first is not None and not state.annealed:
        values = {"at the first step": first} | values
    when = max(values, key=lambda name: values[name])
    recent = [entry for entry in compared if entry["epoch"] <= best["epoch"]]
    # The best of the last tenth, because the objective of an epoch of few steps is noisy.
    now = max(entry[curve] for entry in recent[-max(1, len(recent) // 10) :])
    if now < values[when] - max(1.0, abs(values[when])):
        warnings.warn(
            f"training diverged: {curve} is {now:.5g} nats per datum in epoch "
            f"{best['epoch']}, but was {values[when]:.5g} {when}. Use a lower learning rate, or "
            "pass validation data, so that the weights of the best epoch are kept",
            stacklevel=5,  # the caller of `fit`, which has a decorator
        )


def _write_results(
    pair: PairLike, fit: Fit, folder: Path, check_lock: Callable[[], None] | None
) -> None:
    """Write history and model. If the disk fails, warn: the training itself is not lost."""
    failed = []
    try:
        if check_lock is not None:
            check_lock()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            record(folder, {})
            write_json_result(folder / HISTORY, fit.history)
        except OSError as error:
            failed.append(str(error))
        if isinstance(pair, Part):
            _save(pair, folder)
    except (OSError, CheckpointError) as error:
        failed.append(str(error))
    if failed:
        warnings.warn(
            f"the trained model and its history cannot be written into {folder} "
            f"({'; '.join(failed)}); the weights are in the pair, and the result is returned",
            stacklevel=5,  # the caller of `fit`, which has a decorator
        )


def _save(part: Part, folder: Path) -> None:
    """Save the trained model as `model`, or under a new name if `model` cannot be replaced.

    For example, another program wrote into it during the run, or it is a mount point.
    """
    try:
        save(part, folder / MODEL)
    except (OSError, CheckpointError) as error:
        other = unused(folder, f"{MODEL}-")
        save(part, other)
        warnings.warn(
            f"the trained model was saved to {other}, because {folder / MODEL} cannot be replaced "
            f"({error})",
            stacklevel=6,  # the caller of `fit`, which has a decorator
        )
