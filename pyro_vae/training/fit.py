"""`fit`: Algorithm 1 of Kingma & Welling (2013) over epochs, with a validation ELBO.

Each step draws a minibatch of M data, estimates the bound per datum and its gradient on it, and
updates the parameters. All numbers are in nats per datum.
"""

from typing import Literal

from pyro_vae.arguments import Count, FilePath, Positive, Seed, checked
from pyro_vae.data.any_data import Data
from pyro_vae.data.data_loader import worker_errors_as_data_errors
from pyro_vae.pairs.pair import AnyPair
from pyro_vae.runtime.devices import Device
from pyro_vae.svi import Compile, Precision
from pyro_vae.tracking import AnyTracker
from pyro_vae.training.averaging import Kind
from pyro_vae.training.loop import apply, next_action, run_epoch
from pyro_vae.training.result import Fit, finish
from pyro_vae.training.running import running
from pyro_vae.training.setup import (
    AnySchedule,
    Callback,
    FitConfig,
    Objective,
    Optim,
    Seconds,
    prepare,
)
from pyro_vae.training.watching import tracked


@worker_errors_as_data_errors()
@checked
def fit(
    pair: AnyPair,
    train: Data,
    *,
    validation: Data | None = None,
    epochs: Count = 20,
    batch_size: Count = 128,
    drop_last: bool = False,
    objective: Objective | None = None,
    num_particles: Count = 1,
    optimizer: Optim | None = None,
    learning_rate: Positive = 1e-3,
    schedule: AnySchedule | None = None,
    average: Kind = None,
    patience: Count | None = None,
    seed: Seed = 0,
    device: Device | None = None,
    compile: Compile = "auto",
    precision: Precision = "fp32",
    out: FilePath | None = None,
    resume: bool = False,
    checkpoint_seconds: Seconds = 60.0,
    on_nan: Literal["stop", "backtrack"] = "stop",
    progress: bool | None = None,
    callback: Callback | None = None,
    tracker: AnyTracker | None = None,
) -> Fit:
    """Train a model/guide pair by stochastic variational inference.

    Under `torchrun`, each process trains on its rows of each minibatch with its own noise, and
    gradients are averaged. Batch size, objective and history have the same meaning as for one
    process. The first process writes and shows progress. If torchrun restarts the group after the
    loss of a process, training continues from the last checkpoint in `out`.

    Args:
        pair: Object with a `.model` and a `.guide` that take a batch, such as a `VAE`; or an `SVI`
            of such a pair, which then defines the training step.
        train: Training data of shape `(N, *event)`, or a `Dataset`, which draws a new binarization
            in each epoch. A tuple `(data, y, ...)` has further rows for each datum, and the
            programs are called on `(x, y, ...)`. From a `numpy.memmap` or a zarr array, only the
            rows of the next steps are read into memory, and rows are shuffled within windows. A
            torch `DataLoader` yields batches of x, or of `(x, y, ...)`, in its order and size.
        validation: Validation data, for early stopping and for the choice of the best epoch.

        objective: (What is trained.) Bound to maximize; by default `Trace_ELBO(num_particles)`.
            `TraceEnum_ELBO()` enumerates the discrete latents of the guide, except for sites with
            an `infer["enumerate"]`: at once, or one value after another if the networks accept no
            further dimension. Not with an `SVI`.
        num_particles: Number L of samples of z for each datum and step of the default objective.
        optimizer: Torch optimizer, or function of a list of parameters that returns one; by
            default fused Adam with `learning_rate`. Not with an `SVI`.
        learning_rate: Learning rate of the default optimizer.
        schedule: Function of the optimizer and the number of steps that returns a learning rate
            schedule. It is stepped after each training step.
        average: Average of the weights to validate, keep and return, instead of the weights after
            the last step: `"ema"`, an exponential moving average with a decay of up to 0.999 per
            step; or `"last"`, the mean over the last quarter of the steps. Averages of BatchNorm's
            statistics are included. Training continues from the weights without averaging.

        epochs: (How long.) Number of passes over the training data.
        batch_size: Number M of data in a minibatch.
        drop_last: Whether to leave out the last batch of an epoch if it is smaller, for example
            because BatchNorm cannot train on a single row. Each epoch leaves out other rows. A
            `DataLoader` has its own `drop_last`.
        patience: Number of epochs without a better validation ELBO after which training stops; by
            default it does not stop early. While the beta of an annealed objective still changes
            in this run, epochs do not count.
        seed: Random seed for the order of the data, their binarization and the noise. Runs with
            the same seed are equal. The global random state of torch is restored.

        device: (Where.) Device of the training, such as `"cuda"`; by default the device of the
            parameters. Under torchrun, each process of a machine uses another GPU.
        compile: Whether to compile the step (`pyro_vae.SVI`). `"auto"` compiles the models of this
            package in runs of at least 5,000 steps, because compiling takes some seconds. Pass
            `True` for your own model and guide. Not with an `SVI`.
        precision: `"fp32"`, or `"bf16"` for the layers of the networks (`pyro_vae.SVI`). Not with
            an `SVI`.
        progress: Whether to show a progress bar; by default if standard error is a terminal.
        callback: Function that is called after each epoch with a copy of its entry of the history.
            The run ends if it returns True. The pair has the weights that were validated, and the
            random state is restored afterwards. If it raises an exception, the checkpoint of the
            epoch is written first, so that the run can be resumed.
        tracker: Object that receives the settings, the entries and the learning curve, such as
            `pyro_vae.TensorBoard`. It is closed when the run ends. Callback and tracker are used in
            the first process only. If a run is killed after an epoch, but before its checkpoint,
            they get the epoch again.

        out: (What is kept.) Folder for the trained model (`model/`, if the pair is a `Part` such
            as a `VAE`), the history (`history.json`), and checkpoints: the last two and that of the
            best epoch. Without `resume`, checkpoints and results of an earlier run in the folder
            are moved to `checkpoints-before` and `results-before`. Ctrl-C and SIGTERM write a
            checkpoint and end the run; a second signal ends it at once.
        resume: Whether to continue from the newest checkpoint in `out`, bit for bit, with the same
            settings and data. Without a checkpoint, training starts at step 0. A finished run
            returns its result. With more `epochs`, the run is extended, also after a stop by the
            callback: from the checkpoint on, `schedule` and annealing are those of the longer run.
        checkpoint_seconds: Seconds between checkpoints within an epoch. Each epoch ends with a
            checkpoint.
        on_nan: Action on a non-finite loss or parameter: `"stop"`; or `"backtrack"` to the newest
            checkpoint of an earlier step and continue with half the learning rate, at most five
            times. `rate_factor` in the history is the factor of the learning rate.

    Returns:
        The history of the run. The pair is trained in-place.

    Raises:
        ValueError: If settings or data are invalid. Nothing has been changed then.
        CheckpointError: If another run writes into the folder, if a link or a foreign file has the
            name of a result, if all checkpoints are damaged, or if the run to resume has other
            settings or data.
        TrainingError: If the loss or a parameter is not finite. The pair keeps its last finite
            weights.
        Exception: If `callback` or `tracker` raises it.
        DistributedError: If the processes of a group have different settings.

    Warns:
        CostWarning: If a step costs more than 20 times as much as model and guide without their
            log densities. The message estimates time and memory.
        UserWarning: If training diverged: in the epoch that the weights are of, and in the tenth of
            all epochs that ends with it, the objective is lower than at the first step or in
            another epoch by more than 1 nat per datum and by more than its absolute value there.
            Epochs before the last change of an annealed beta are not compared. Also if results of
            an earlier run were moved, if `patience` has no effect, or if a `DataLoader` yields
            other rows when it is read again, so that the run cannot be resumed bit for bit.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> x = (torch.rand(64, 1, 4, 4) < 0.3).float()
        >>> likelihood = pv.likelihoods.Bernoulli(pv.networks.MLP(2, [8], (1, 4, 4)))
        >>> guide = pv.guides.DiagonalNormal(pv.networks.MLP((1, 4, 4), [8], 4))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), likelihood, guide)
        >>> fit = pv.fit(vae, x[:48], validation=x[48:], epochs=2, batch_size=16)
        >>> fit.num_steps, sorted(fit.history[-1])
        (6, ['epoch', 'num_data', 'seconds', 'step', 'train_elbo', 'validation_elbo', ...])

    See also: `pyro_vae.Fit`, `pyro_vae.SVI`, `pyro_vae.evaluate`, `pyro_vae.report`.
    """
    config = FitConfig.checked(
        has_validation=validation is not None,
        objective=objective,
        num_particles=num_particles,
        optimizer=optimizer,
        learning_rate=learning_rate,
        schedule=schedule,
        average=average,
        epochs=epochs,
        batch_size=batch_size,
        drop_last=drop_last,
        patience=patience,
        seed=seed,
        device=device,
        compile=compile,
        precision=precision,
        progress=progress,
        out=out,
        resume=resume,
        checkpoint_seconds=checkpoint_seconds,
        on_nan=on_nan,
        callback=callback,
        tracker=tracker,
    )
    job = prepare(pair, train, validation, config)
    with running(job) as state, tracked(job):
        while state.progress.stopped is None:
            end = run_epoch(job, state)
            apply(next_action(state.progress, end, config, state.annealed), end, job, state)
        return finish(job, state)
