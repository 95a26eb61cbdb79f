"""Checks of training on a device, and what all checks of gpu.py share."""

import contextlib
import functools
import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn

import pyro_vae as pv

# A check returns a number, and the largest number that passes.
Check = Callable[[], tuple[float, float]]
adam = functools.partial(torch.optim.Adam, lr=1e-3, fused=True)


def error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to entries above 1; inf for other shapes or NaN."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    if actual.shape != expected.shape:
        return float("inf")
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    scaled = (actual - expected).abs() / expected.abs().clamp(min=1)
    return float(torch.where(same, 0, scaled.nan_to_num(nan=torch.inf)).max())


def vae_on(device: str, dtype: torch.dtype = torch.float32, sizes: tuple[int, int] = (64, 20)):
    """Return a Bernoulli VAE of 100 entries, and 256 data."""
    torch.manual_seed(0)
    hidden, latents = sizes
    vae = pv.VAE(
        pv.priors.StandardNormal(latents),
        pv.likelihoods.Bernoulli(pv.networks.MLP(latents, [hidden], (100,))),
        pv.guides.DiagonalNormal(pv.networks.MLP((100,), [hidden], 2 * latents)),
    )
    x = (torch.rand(256, 100) < 0.3).to(dtype)
    return vae.to(device, dtype), x.to(device)


def trained(
    device: str, steps: int, dtype: torch.dtype = torch.float32, **settings: Any
) -> tuple[pv.SVI, pv.VAE, list[float]]:
    """Train a VAE from one seed."""
    pyro.clear_param_store()
    vae, x = vae_on(device, dtype)
    svi = pv.SVI(vae.model, vae.guide, adam, **settings)
    torch.manual_seed(1)
    with pyro.validation_enabled(False):
        return svi, vae, [svi.step(x) / len(x) for _ in range(steps)]


def weights(module: nn.Module) -> Tensor:
    """Return all parameters as one vector on the CPU."""
    return torch.cat([p.detach().cpu().double().flatten() for p in module.parameters()])


def compiled_as_eager(device: str, dtype: torch.dtype, limit: float) -> tuple[float, float]:
    """Compare the weights after 30 compiled and 30 eager steps on the same noise."""
    svi, compiled, _ = trained(device, 30, dtype, compile=True)
    assert svi.num_compiled_steps >= 28, f"{svi.num_compiled_steps} of 30 steps were compiled"
    _, eager, _ = trained(device, 30, dtype, compile=False)
    return error(weights(compiled), weights(eager)), limit


def default_adam(device: str) -> tuple[float, float]:
    """Compare compiled and eager steps with Adam's default implementation."""
    found = []
    for compile in (True, False):
        pyro.clear_param_store()
        vae, x = vae_on(device)
        svi = pv.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters()), compile=compile)
        torch.manual_seed(1)
        for _ in range(20):
            svi.step(x)
        assert bool(svi.num_compiled_steps) is compile, "the step was not compiled"
        found.append(weights(vae))
    return error(*found), 1e-4


def stock_as_ours(device: str) -> tuple[float, float]:
    """Compare the losses of 20 steps of Pyro's SVI and of the eager step."""
    losses = []
    for make in (pyro.infer.SVI, functools.partial(pv.SVI, compile=False)):
        pyro.clear_param_store()
        vae, x = vae_on(device, torch.float64)
        optim = pyro.optim.Adam({"lr": 1e-3})
        svi = make(vae.model, vae.guide, optim, loss=Trace_ELBO())
        torch.manual_seed(1)
        losses.append(torch.tensor([svi.step(x) for _ in range(20)]))
    return error(*losses), 1e-9


def bf16(device: str) -> tuple[float, float]:
    """Compare the losses of 100 compiled steps in bfloat16 and in float32."""
    svi, _, losses = trained(device, 100, compile=True, precision="bf16")
    assert svi.num_compiled_steps >= 90, f"{svi.num_compiled_steps} of 100 steps were compiled"
    _, _, expected = trained(device, 100, compile=False)
    return error(torch.tensor(losses), torch.tensor(expected)), 0.02


def synchronizations(device: str) -> tuple[float, float]:
    """Count the steps that synchronize, of 200 compiled steps whose losses are not read.

    Every 50th step is compared with Pyro's, which reads losses.
    """
    svi, _, _ = trained(device, 120, compile=True)
    _, x = vae_on(device)
    synchronizing = 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pyro.validation_enabled(False):
            for _ in range(200):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    svi.step_tensor(x)
                synchronizing += any("called a synchronizing" in str(w.message) for w in caught)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert svi.num_compiled_steps >= 300, f"{svi.num_compiled_steps} compiled steps"
    return float(synchronizing), 4.0


def graph_launches(
    device: str, limit: float, objective: Callable[[], ELBO] = Trace_ELBO
) -> tuple[float, float]:
    """Return the kernels and copies that 10 steps launch outside of CUDA graphs, a step."""
    svi, _, _ = trained(device, 120, compile=True, loss=objective())
    _, x = vae_on(device)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        with pyro.validation_enabled(False):  # as in the steps before; else another program
            for _ in range(10):
                svi.step_tensor(x)
        torch.cuda.synchronize()
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts.get("cudaGraphLaunch", 0) == 10, f"graph launches: {counts}"
    launched = [n for name, n in counts.items() if "LaunchKernel" in name or "Memcpy" in name]
    return sum(launched) / 10, limit


def annealed_as_eager(device: str) -> tuple[float, float]:
    """Compare compiled and eager steps with a KL weight that grows, which is on the CPU."""
    found = []
    for compile in (True, False):
        objective = pv.objectives.Beta(pv.objectives.Linear(40))
        svi, vae, _ = trained(device, 60, torch.float64, compile=compile, loss=objective)
        assert bool(svi.num_compiled_steps) is compile, "the step was not compiled"
        found.append(weights(vae))
    return error(*found), 1e-9


def convolutions_and_flows(device: str) -> tuple[float, float]:
    """Compare compiled and eager steps of the recipe with convolutions and flows."""
    found = []
    x = (torch.rand(32, 1, 28, 28, device=device) < 0.3).float()
    recipe = pv.recipes.RECIPES["conv-flow"]
    for compile in (True, False):
        pyro.clear_param_store()
        torch.manual_seed(0)
        vae = recipe.build(pv.data.Dataset(x.cpu()), show=False).to(device, torch.float64)
        svi = pv.SVI(vae.model, vae.guide, adam, compile=compile)
        torch.manual_seed(1)
        for _ in range(10):
            svi.step(x.double())
        assert bool(svi.num_compiled_steps) is compile, "the step was not compiled"
        found.append(weights(vae))
    return error(*found), 1e-6


class InterruptionError(Exception):
    """Ends a run, as a kill would."""


@contextlib.contextmanager
def ends_after(steps: int) -> Iterator[None]:
    """Raise `InterruptionError` before the step with this number."""
    real, count = pv.SVI.step_of, itertools.count()

    def step_of(self: pv.SVI, *args: Any, **kwargs: Any) -> Any:
        if next(count) == steps:
            raise InterruptionError
        return real(self, *args, **kwargs)

    pv.SVI.step_of = step_of  # type: ignore[method-assign]
    try:
        yield
    finally:
        pv.SVI.step_of = real  # type: ignore[method-assign]


def resume(device: str, compile: bool) -> tuple[float, float]:
    """Compare a run with one that was interrupted within an epoch and resumed."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("whole", "resumed"):
            pyro.clear_param_store()
            vae, x = vae_on(device)
            data = pv.data.Dataset((x * 200 + 20).byte(), binarization="dynamic")
            run = functools.partial(
                pv.fit, train=data, validation=x[:32], epochs=3, batch_size=32, compile=compile,
                out=Path(folder) / name, checkpoint_seconds=0.0, progress=False,
            )  # fmt: skip
            if name == "resumed":
                with ends_after(13), contextlib.suppress(InterruptionError):
                    run(vae)
                pyro.clear_param_store()
                vae, _ = vae_on(device)
                run(vae, resume=True)
            else:
                run(vae)
            found.append(weights(vae))
        loaded = pv.load(Path(folder) / "resumed" / "model")
        assert next(loaded.parameters()).device.type == "cpu", "load() puts models on the CPU"
        assert torch.equal(weights(loaded), found[1]), "the saved model has other weights"
    return float((found[0] - found[1]).abs().max()), 0.0


def elsewhere(device: str) -> tuple[float, float]:
    """Resume on the CPU a run that the device has begun, or compare its model there."""
    vae, x = vae_on(device)
    with tempfile.TemporaryDirectory() as folder:
        pv.fit(vae, x, epochs=2, batch_size=64, out=folder, compile=False, progress=False)
        loaded, z = pv.load(Path(folder) / "model"), torch.randn(50, 20)
    here = loaded.decode(z).log_prob(x[:50].cpu())
    return error(vae.decode(z.to(device)).log_prob(x[:50]), here), 1e-4
