"""Small training runs of several kinds, each of which writes a checkpoint after every step."""

import contextlib
import functools
import multiprocessing
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.checkpointing import checkpoint_store
from pyro_vae.training import run_state

FORK = multiprocessing.get_context("fork")
EPOCHS, DATA, BATCH = 6, 64, 16
STEPS = EPOCHS * DATA // BATCH
# Steps that the child has taken. A child that is killed would keep the lock of the value.
taken = FORK.Value("i", 0, lock=False)
Settings = dict[str, Any]


def pixels() -> Tensor:
    """Return the data of all runs."""
    return (torch.rand(DATA, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.3).float()


def plain(_: Path) -> tuple[Any, Settings]:
    """Data in memory, with validation."""
    return pixels(), {"validation": pixels()[:8]}


def scheduled(_: Path) -> tuple[Any, Settings]:
    """A learning rate schedule."""
    adam = functools.partial(torch.optim.Adam, lr=1e-2)
    return pixels(), {
        "optimizer": adam,
        "schedule": lambda optimizer, steps: OneCycleLR(optimizer, 1e-2, total_steps=steps),
    }


def backtracking(_: Path) -> tuple[Any, Settings]:
    """A parameter is NaN after step 10, until the learning rate is halved."""

    def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
        made = torch.optim.Adam(parameters, lr=1e-2)

        def spoil(optimizer: Any, *_: Any) -> None:
            group = optimizer.param_groups[0]
            first = group["params"][0]
            if group["lr"] == 1e-2 and optimizer.state[first]["step"] == 10:
                first.data.fill_(torch.nan)

        made.register_step_post_hook(spoil)
        return made

    return pixels(), {"optimizer": adam, "on_nan": "backtrack"}


def loader(_: Path) -> tuple[Any, Settings]:
    """A shuffled `DataLoader` with its own generator."""
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(pixels())
    return DataLoader(data, batch_size=BATCH, shuffle=True, generator=generator), {}


def memmap(folder: Path) -> tuple[Any, Settings]:
    """An array on disk."""
    path = folder.parent / "data.npy"
    if not path.exists():
        np.save(path, pixels().numpy())
    return np.load(path, mmap_mode="r"), {}


def compiled(_: Path) -> tuple[Any, Settings]:
    """A compiled step."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a pool of processes would outlive a kill
    return pixels(), {"compile": True}


KINDS: dict[str, Callable[[Path], tuple[Any, Settings]]] = {
    kind.__name__: kind for kind in (plain, scheduled, backtracking, loader, memmap, compiled)
}
PAIR = "two processes"


def train(
    folder: Path, pause: float = 0.0, kind: str = "plain", *, warn: Any = "ignore"
) -> list[Tensor]:
    """Train a small VAE, or continue its run, and return its weights and its history."""
    real = run_state.RunState.count

    def count(self: Any, loss: float, num_data: int) -> None:
        real(self, loss, num_data)
        taken.value = self.progress.step
        time.sleep(pause)

    torch.manual_seed(0)
    x, settings = KINDS[kind](folder)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.MLP(2, [8], (1, 4, 4))),
        pv.guides.DiagonalNormal(pv.networks.MLP((1, 4, 4), [8], 4)),
    )
    run_state.RunState.count = count  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter(warn)
        fit = pv.fit(
            vae, x, epochs=EPOCHS, batch_size=BATCH, out=folder, resume=True,
            checkpoint_seconds=0.0, progress=False, **settings,
        )  # fmt: skip
    run_state.RunState.count = real  # type: ignore[method-assign]
    epochs = [{k: v for k, v in entry.items() if k != "seconds"} for entry in fit.history]
    history = [torch.tensor([*epoch.values()], dtype=torch.float64) for epoch in epochs]
    return [*(parameter.detach() for parameter in vae.parameters()), *history]


def in_child(work: Callable[[], Any], strike: Callable[[Any], None] | None = None) -> Any:
    """Run `work` silently in a child process, apply `strike` to it, and wait for its end."""

    def silent() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()

    child = FORK.Process(target=silent)
    child.start()
    if strike is not None:
        strike(child)
    child.join()
    return child


def _train_and_save(folder: Path, kind: str) -> None:
    np.savez(f"{folder}.npz", **as_arrays(train(folder, kind=kind)))


def _train_in_group(folder: Path, number: int, store: Path, pause: float) -> None:
    method = f"file://{store}"
    torch.distributed.init_process_group("gloo", init_method=method, rank=number, world_size=2)
    values = train(folder, pause)
    if number == 0:
        np.savez(f"{folder}.npz", **as_arrays(values))
    torch.distributed.destroy_process_group()


def start_two_processes(folder: Path, store: Path, pause: float = 0.0) -> list[Any]:
    """Start the run of a group of two processes; `store` is a file that does not exist."""
    return [
        FORK.Process(target=_silently, args=(_train_in_group, folder, number, store, pause))
        for number in range(2)
    ]


def _silently(work: Callable[..., Any], *args: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    work(*args)


def checkpoints(folder: Path) -> list[Path]:
    """Return the existing checkpoints, oldest first."""
    return sorted((folder / "checkpoints").glob("[0-9]*"))


def steps_kept(folder: Path) -> Iterator[int | None]:
    """Yield the step of each checkpoint, None for a damaged one."""
    for path in checkpoints(folder):
        try:
            yield checkpoint_store.read(path)[1]["progress"]["step"]
        except pv.CheckpointError:
            yield None


def newest_step(folder: Path) -> int:
    """Return the step of the newest intact checkpoint, 0 if there is none."""
    return max((step for step in steps_kept(folder) if step is not None), default=0)


@dataclass
class Outcome:
    """Result of a fault: number of tries, lost runs and steps, corrupt files."""

    tried: int = 0
    runs_lost: int = 0
    steps_lost: int = 0
    files_corrupt: int = 0

    def add(self, other: "Outcome") -> None:
        """Add the counts of another outcome."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def count(self, folder: Path) -> None:
        """Count a try, and the damaged checkpoints in the folder of its run."""
        self.tried += 1
        self.files_corrupt += list(steps_kept(folder)).count(None)


class Bench:
    """Runs in a scratch folder, and the undisturbed run of each kind to compare them with.

    Args:
        scratch: Empty folder.
        seed: Random seed of times, bytes and sizes.
    """

    def __init__(self, scratch: Path, seed: int) -> None:
        self.scratch, self.seed, self.draw = scratch, seed, random.Random(seed)
        self._number, self._made = 0, dict[str, Any]()

    def start(self, fault: str, number: int) -> None:
        """Seed the random choices of one trial of a fault, whichever trials came before."""
        self.draw = random.Random(f"{self.seed} {fault} {number}")

    def folder(self) -> Path:
        """Return a new folder for a run."""
        self._number += 1
        return self.scratch / str(self._number)

    def undisturbed(self, kind: str = "plain") -> dict[str, np.ndarray]:
        """Return the final weights and the history of the undisturbed run of a kind."""
        if kind == PAIR:
            result = self.once(kind, lambda: self.train(self.folder(), kind))
            assert result is not None
        else:  # in this process, so that its children find all modules imported
            folder = self.scratch / f"undisturbed {kind}"
            result = self.once(kind, lambda: as_arrays(train(folder, kind=kind)))
        return dict(result)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what all trials of a fault begin with; it is made for the first one."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def train(self, folder: Path, kind: str = "plain") -> dict[str, np.ndarray] | None:
        """Train or resume a run in child processes; return its result, None if it fails."""
        if kind == PAIR:
            for child in (group := start_two_processes(folder, self.folder())):
                child.start()
            for child in group:
                child.join()
        else:
            in_child(functools.partial(_train_and_save, folder, kind))
        try:
            with np.load(f"{folder}.npz") as result:
                return dict(result)
        except FileNotFoundError:
            return None

    def finish(self, folder: Path, outcome: Outcome, kind: str = "plain") -> None:
        """Resume a run; count it as lost unless it ends as the undisturbed run."""
        expected, found = self.undisturbed(kind), self.train(folder, kind)
        outcome.runs_lost += found is None or not same(found, expected)

    def half_a_run(self, steps: int = STEPS // 3) -> Path:
        """Return the folder of a run that was killed when it had taken so many steps."""
        folder = self.folder()

        def strike(child: Any) -> None:
            while len(checkpoints(folder)) < 2 or taken.value < steps:
                time.sleep(0.002)
            child.kill()

        taken.value = 0
        in_child(functools.partial(train, folder, 0.01), strike)
        return folder


def as_arrays(values: list[Tensor]) -> dict[str, np.ndarray]:
    """Return tensors as arrays with numbers as names."""
    return {str(number): value.numpy().copy() for number, value in enumerate(values)}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    """Return whether two results are equal bit for bit."""
    names = set(found) == set(expected)
    return names and all(np.array_equal(found[name], expected[name]) for name in expected)


def wait(children: list[Any], seconds: float) -> None:
    """Wait until all children have ended, at most so many seconds."""
    end = time.perf_counter() + seconds
    for child in children:
        with contextlib.suppress(AssertionError):
            child.join(max(end - time.perf_counter(), 0.0))
