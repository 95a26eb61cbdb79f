"""Copy the state of a training run to tensors and JSON, and restore it bit for bit.

`snapshot` and `restore` use no files, threads or clocks; `checkpoint_store` writes the result.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping

import pyro
import torch
from torch import Tensor

from pyro_vae.checkpointing import optimizer_state
from pyro_vae.checkpointing.checkpoint_store import Checkpoint
from pyro_vae.checkpointing.fingerprint import (
    OBJECTIVE_STATE,
    check_tensor,
    differences,
    refuse_other,
)
from pyro_vae.checkpointing.resumable import CALLBACK, FINISHED, Progress, Resumable
from pyro_vae.distributed import gather, rank, world_size
from pyro_vae.objectives.nats_per_datum import objectives_of
from pyro_vae.runtime.files import CheckpointError, JSONObject
from pyro_vae.runtime.random_state import python_random_tensors, set_python_random
from pyro_vae.runtime.versions import versions

# Errors of a state that does not fit the run.
MISFITS = (
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ValueError,
    ArithmeticError,
)
# Begin of the names of buffers of modules that the programs refer to. Older versions left them out.
BUFFER = "buffer."


def snapshot(run: Resumable) -> Checkpoint:
    """Return copies of the tensors of a run on the CPU, and the rest of its state as JSON data.

    All processes call it. The result contains the random states of all of them.
    """
    named, svi = run.tensors(), run.svi
    names = {tensor: name for name, tensor in named.items()}
    tensors = {f"now/{name}": tensor for name, tensor in named.items()}
    tensors |= {f"best/{name}": copy for name, copy in run.best.items()}
    tensors |= {f"average/{names[t]}": copy for t, copy in run.average if t in names}
    tensors |= {f"random/{name}": state for name, state in _random_states(run).items()}
    state: JSONObject = {
        "progress": dataclasses.asdict(run.progress),
        "settings": run.settings,
        "identity": run.identity.saved(),
        "loader": run.loader_state,
        "versions": versions(),
        "objective": [
            {key: getattr(objective, key) for key in OBJECTIVE_STATE if hasattr(objective, key)}
            for objective in objectives_of(svi)
        ],
        "trained": [names[parameter] for parameter in svi.trained],
        "update_outside": svi.update_outside,
        "compilation": run.compilation(),
    }
    if svi.optim.optimizer is not None:
        state["rates"] = run.rates.sampled(svi.optim.optimizer)
    more, state["optimizer"] = optimizer_state.saved(svi.optim, names, run.rates.unscheduled)
    tensors |= more
    # Cloned, since safetensors refuses tensors that share memory.
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    return copies, state


def restore(run: Resumable, checkpoint: Checkpoint) -> None:
    """Set a run to the state of a checkpoint.

    If the run has more epochs than that of the checkpoint, it extends it. The learning rate
    schedule and the annealing are then those of the longer run from this step on.

    Raises:
        CheckpointError: If the checkpoint is of another run. The message names the difference.
    """
    try:
        _restore(run, *checkpoint)
    except CheckpointError:
        raise
    except MISFITS as error:
        raise CheckpointError(f"the checkpoint does not fit this run: {error!r}") from error


def _saved_of(tensors: dict[str, Tensor], saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without buffers that a checkpoint of an older version lacks; warn of them.

    Args:
        tensors: Tensors of the run by name.
        saved: Tensors of the checkpoint.
    """
    named = {
        name: tensor
        for name, tensor in tensors.items()
        if f"now/{name}" in saved or not name.startswith(BUFFER)
    }
    if missing := tensors.keys() - named.keys():
        warnings.warn(
            f"the checkpoint of an older version lacks {len(missing)} buffers of modules, such as "
            "running means: they keep their present values",
            stacklevel=5,
        )
    return named


def _restore(run: Resumable, saved: dict[str, Tensor], state: JSONObject) -> None:
    svi = run.svi
    then, now = state["settings"], run.settings
    extends = then["epochs"] < now["epochs"]
    refuse_other("settings", then, run.settings_of(then) if extends else now)
    run.identity.compare(state.get("identity"), state["versions"])
    if found := differences(state["versions"], versions()):
        warnings.warn(f"the resumed run may not be equal bit for bit: {found}", stacklevel=4)
    before = run.tensors()
    run.late |= _late_parameters(run, before, saved, state)
    named = _saved_of(run.tensors(), saved)
    names = {tensor: name for name, tensor in named.items()}
    for added in optimizer_state.additions(svi.optim, names, state["optimizer"]):
        parameters = [named[name] for name in added]
        svi.parameters |= dict.fromkeys(parameters)
        svi.optim.add(parameters)
    progress = Progress(**state["progress"])
    _check_place(progress, run.rates.total_steps // now["epochs"], then["epochs"])
    _check_tensors(named, saved, with_best=bool(progress.best), before=before)
    if svi.optim.optimizer is not None:  # None at step 0
        _restore_optimizer(run, progress, names, saved, state)
    svi.update_outside = state["update_outside"]
    svi.trained.update(named[name] for name in state["trained"])
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(saved[f"now/{name}"])
    best, average = (
        {
            name: saved[f"{kind}/{name}"].to(tensor.device, copy=True)
            for name, tensor in named.items()
            if f"{kind}/{name}" in saved
        }
        for kind in ("best", "average")
    )
    run.best, run.average = best, [(named[name], copy) for name, copy in average.items()]
    _restore_objectives(objectives_of(svi), state["objective"])
    _restore_noise(run.generator.device, saved)
    run.generator.set_state(saved["random/data"])
    run.order_state = saved["random/order"]
    ended = progress.stopped in (FINISHED, CALLBACK)
    if extends and (ended or then["patience"] != now["patience"]):
        progress.stopped = None
    run.loader_state = state.get("loader", {})
    run.compilation_then = state.get("compilation")
    run.progress = progress


def _check_tensors(
    named: Mapping[str, Tensor],
    saved: dict[str, Tensor],
    *,
    with_best: bool,
    before: Mapping[str, Tensor],
) -> None:
    """Check the tensors of a checkpoint.

    Args:
        named: Tensors of the run by name.
        saved: Tensors of the checkpoint.
        with_best: Whether the checkpoint has a best epoch.
        before: Tensors of the run before late parameters. The best epoch has all of these.
    """
    for kind in ("now", "best") if with_best else ("now",):
        for name, tensor in named.items():
            if kind == "now" or name in before or f"best/{name}" in saved:
                check_tensor(f"{kind}/{name}", tensor, saved.get(f"{kind}/{name}"))
    for name, tensor in named.items():
        if f"average/{name}" in saved:
            check_tensor(f"average/{name}", tensor, saved[f"average/{name}"])


def _restore_optimizer(
    run: Resumable,
    progress: Progress,
    names: dict[Tensor, str],
    saved: dict[str, Tensor],
    state: JSONObject,
) -> None:
    """Restore the state of the optimizer, and the schedule of the run from this step on."""
    optim, total_steps, optimizer = run.svi.optim, run.rates.total_steps, run.svi.optim.optimizer
    then, now = state["settings"]["epochs"], run.settings["epochs"]
    # The schedule of the checkpoint, for the comparison of the optimizers' settings.
    run.rates.total_steps = total_steps // now * then
    run.rates.reset(optimizer, progress.step, progress.rate_factor)
    optimizer_state.restore(optim, names, saved, state["optimizer"], run.rates.unscheduled)
    optim.is_restored = True
    if "rates" in state:  # not in checkpoints of older versions
        rates = run.rates.sampled(optimizer)
        refuse_other("schedule", {"rates": state["rates"]}, {"rates": rates})
    if then < now:
        run.rates.total_steps = total_steps
        run.rates.reset(optimizer, progress.step, progress.rate_factor)
        optimizer_state.set_changed(optimizer, saved, state["optimizer"])


def _check_place(progress: Progress, steps_per_epoch: int, epochs: int) -> None:
    """Raise `CheckpointError` if the counters are not those of a step of the run."""
    taken = (progress.epoch - 1) * steps_per_epoch + progress.batch
    is_place = (
        progress.batch <= steps_per_epoch and progress.step == taken <= epochs * steps_per_epoch
    )
    if not is_place or len(progress.history) != progress.epoch - 1:
        raise CheckpointError(
            f"the checkpoint is damaged: step {progress.step} is not batch {progress.batch} of "
            f"epoch {progress.epoch} in a run of {epochs} epochs with {steps_per_epoch} steps"
        )


def _late_parameters(
    run: Resumable, named: Mapping[str, Tensor], saved: dict[str, Tensor], state: JSONObject
) -> set[str]:
    """Create the parameters of Pyro's store that first appeared after the start of the run.

    Their constraint is not in the checkpoint. The program sets it when the parameter appears.

    Returns:
        The names of these parameters in the store.
    """
    groups = [name for group in state["optimizer"]["groups"] for name in group["parameters"]]
    late = set()
    for name in groups:
        role, _, stored = name.partition(".")
        if name in named or role != "param":
            continue
        if f"now/{name}" not in saved:
            raise CheckpointError(f"the checkpoint lacks the tensor {f'now/{name}'!r}")
        store, value = pyro.get_param_store(), saved[f"now/{name}"].to(run.generator.device)
        if stored not in store:
            store.setdefault(stored, value)
            late.add(stored)
        run.svi.parameters[dict(store.named_parameters())[stored]] = None
    return late


def _restore_objectives(objectives: Iterable[object], entries: list[JSONObject]) -> None:
    for objective, entry in zip(objectives, entries, strict=True):
        for key in OBJECTIVE_STATE:
            if key in entry:
                setattr(objective, key, entry[key])


def _random_states(run: Resumable) -> dict[str, Tensor]:
    states = {"data": run.generator.get_state(), "order": run.order_state}
    for number, state in enumerate(gather(_noise_states(run.generator.device))):
        states |= {f"{name}{number or ''}": value for name, value in state.items()}
    return states


def _noise_states(device: torch.device) -> dict[str, Tensor]:
    """Return the random states of this process."""
    states = {"torch": torch.get_rng_state(), **python_random_tensors()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_noise(device: torch.device, saved: dict[str, Tensor]) -> None:
    """Set the random states of this process, or new ones if the checkpoint has fewer processes."""
    number = rank() or ""
    if f"random/torch{number}" in saved:
        torch.set_rng_state(saved[f"random/torch{number}"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(saved[f"random/cuda{number}"], device)
        names = [name for name in ("python", "numpy") if f"random/{name}{number}" in saved]
        if names:  # not in checkpoints of older versions
            set_python_random({name: saved[f"random/{name}{number}"] for name in names})
    else:
        torch.set_rng_state(saved["random/torch"])
        torch.manual_seed(int(torch.randint(2**62, (world_size(),))[rank()]))
