"""Small training runs of several kinds, each of which writes a checkpoint after every step.

python benchmarks/fault_runs.py FOLDER       the run of two processes, under torchrun
"""

import functools
import multiprocessing
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.training import run_state

FORK = multiprocessing.get_context("fork")
EPOCHS, DATA, BATCH = 6, 64, 16
STEPS = EPOCHS * DATA // BATCH
taken = FORK.Value("i", 0)  # steps that the child has taken
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
    return pixels(), {"compile": True}


KINDS: dict[str, Callable[[Path], tuple[Any, Settings]]] = {
    kind.__name__: kind for kind in (plain, scheduled, backtracking, loader, memmap, compiled)
}


def train(folder: Path, pause: float = 0.0, kind: str = "plain") -> list[Tensor]:
    """Train a small VAE, or continue its run, and return its weights."""
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pv.fit(
                vae, x, epochs=EPOCHS, batch_size=BATCH, out=folder, resume=True,
                checkpoint_seconds=0.0, progress=False, **settings,
            )  # fmt: skip
    finally:
        run_state.RunState.count = real  # type: ignore[method-assign]
    return [parameter.detach() for parameter in vae.parameters()]


def start_two_processes(folder: Path) -> "subprocess.Popen[bytes]":
    """Start the run of two processes, in a process group."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, folder]
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    weights = train(Path(sys.argv[1]), pause=0.02)
    if pv.distributed.is_first():
        np.savez(f"{sys.argv[1]}.npz", *[weight.numpy() for weight in weights])
