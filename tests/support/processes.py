"""Jobs of test_distributed.py, run in one process and in several: `processes.py JOB FOLDER`.

The pair's noise is given with the data, so that what several processes compute is what one does.
"""

import functools
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.utils.data import DataLoader

import pyro_vae as pv
from pyro_vae.engine import compiled_step
from pyro_vae.models.base import expose_parameters
from pyro_vae.training import run_state

LATENT, OBSERVED = 2, 5
STEPS = 4  # in an epoch


class GivenNoise(dist.Normal):
    """A normal distribution whose draws are made of given noise."""

    def __init__(self, loc, scale, noise):
        super().__init__(loc, scale)
        self.noise = noise

    def expand(self, batch_shape, _instance=None):
        """Return it for more of the same draws."""
        return GivenNoise(*(t.expand(batch_shape) for t in (self.loc, self.scale, self.noise)))

    def rsample(self, sample_shape=()):
        """Return the draw, shape `(*sample_shape, *batch)`."""
        return (self.loc + self.scale * self.noise).expand(*sample_shape, *self.noise.shape)


class Model(nn.Module):
    """p(z) p(x|z), with a global scale that has a prior of its own weight 1/N."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(LATENT, OBSERVED, dtype=torch.double)
        self.unused = nn.Parameter(torch.zeros(3, dtype=torch.double))

    def forward(self, x, noise):
        """Score x, shape `(num_data, OBSERVED)`."""
        expose_parameters(self, "model")
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    """q(z|x) with the noise of each datum given."""

    def __init__(self, *layers):
        super().__init__()
        self.encoder = nn.Sequential(*layers, nn.Linear(OBSERVED, LATENT, dtype=torch.double))
        self.scale = nn.Parameter(torch.zeros(LATENT, dtype=torch.double))

    def forward(self, x, noise):
        """Draw z, shape `(num_data, LATENT)`."""
        expose_parameters(self, "guide")
        with pyro.plate("data", len(x)):
            q = GivenNoise(self.encoder(x), self.scale.exp().expand(len(x), LATENT), noise)
            pyro.sample("z", q.to_event(1))


def data(num_data=61):
    """Return data and noise: with batches of 20 the last one is of a single datum."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_data, OBSERVED, generator=generator, dtype=torch.double)
    return x, torch.randn(num_data, LATENT, generator=generator, dtype=torch.double)


def fit(folder=None, layers=(), num_data=61, **settings):
    """Train for 3 epochs of 4 steps; return the pair and the result."""
    torch.manual_seed(pv.distributed.rank())  # the first process's weights are everybody's
    pair = pv.Pair(Model(), Guide(*layers))
    options = {
        "validation": data(9),
        "epochs": 3,
        "batch_size": 20,
        "optimizer": functools.partial(torch.optim.Adam, lr=1e-2),
        "seed": 3,
        "out": folder,
        "progress": False,
    }
    return pair, pv.fit(pair, data(num_data), **(options | settings))


def numbers(pair, result):
    """Return weights and history as plain numbers."""
    weights = [p.flatten().tolist() for part in (pair.model, pair.guide) for p in part.parameters()]
    history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in result.history]
    return {"weights": weights, "history": history, "steps": result.num_steps}


class Regression(nn.Module):
    """A latent that belongs to no datum: its draws are the same for all batches."""

    def forward(self, x, noise):
        """Score x given one location."""
        loc = pyro.sample("loc", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(x.shape), 1.0).to_event(1), obs=x)


def regression_guide(x, noise):
    """Draw the location and z from fixed distributions."""
    loc = pyro.sample("loc", dist.Normal(x.new_tensor(0.1), 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.mean(-1) + 0.1 * loc, 0.7))


def trees(folder):
    """Return all numbers of the trees of two pairs, one of them from a store."""
    found = {}
    local = pv.VAE(
        pv.priors.StandardNormal(LATENT),
        pv.likelihoods.Normal(pv.networks.MLP(LATENT, [4], OBSERVED), scale=1.0),
        pv.guides.DiagonalNormal(pv.networks.MLP(OBSERVED, [4], 2 * LATENT)),
    ).double()
    pairs = {"global": (Regression(), regression_guide), "local": (local.model, local.guide)}
    for name, (model, guide) in pairs.items():
        for store in (None, folder / name):
            args = data() if name == "global" else data()[:1]
            tree = pv.from_pyro_svi(
                model, guide, model_args=args, num_samples=5, batch_size=7, seed=2, store=store
            )
            for group in tree.children.values():
                for variable, values in group.data_vars.items():
                    key = f"{name}/{store is None}/{group.name}/{variable}"
                    found[key] = np.asarray(values).ravel().tolist()
    return found


def job_equal(folder):
    """Train eagerly and compiled, score, diagnose, and draw."""
    graph = compiled_step.compile_graph
    compiled_step.compile_graph = lambda graph, inputs: graph  # without the seconds it takes
    results = {name: numbers(*fit(compile=name == "compiled")) for name in ("eager", "compiled")}
    compiled_step.compile_graph = graph
    epochs = []
    watched = fit(
        average="ema", callback=lambda entry: epochs.append(entry["epoch"]) or len(epochs) > 1
    )
    results["watched"] = numbers(*watched)
    results["watched_epochs"] = pv.distributed.gather(epochs)
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(LATENT),
        pv.likelihoods.Normal(pv.networks.MLP(LATENT, [4], OBSERVED), scale=1.0),
        pv.guides.DiagonalNormal(pv.networks.MLP(OBSERVED, [4], 2 * LATENT)),
    )
    x = data(3000)[0].float()
    scores = pv.evaluate(vae, x, num_samples=128, seed=4)
    results["scores"] = scores.log_likelihood.tolist()
    with torch.random.fork_rng():
        torch.manual_seed(pv.distributed.rank())  # a shuffled loader's order does not depend on it
        loader = DataLoader(x, batch_size=70, shuffle=True)
        scores = pv.evaluate(vae, loader, num_samples=128, seed=4)
    results["loader_scores"] = scores.log_likelihood.tolist()
    card = pv.diagnose(vae, x[:200], num_samples=40, num_gap_data=30, num_simulations=100, seed=4)
    results["card"] = [finding.value for finding in card.findings]
    results["khat"] = card.per_datum["khat"].to_numpy().tolist()
    results["annealed"] = pv.ais(vae, x[:30], num_temperatures=5).lower.tolist()
    results["trees"] = trees(folder / f"store-{pv.distributed.world_size()}")
    # The noise is each process's own.
    seen = []
    real, pv.SVI.step_of = pv.SVI.step_of, lambda self, *args: (seen.append(torch.rand(())), 1.0)[1]
    fit(validation=None, epochs=1)
    pv.SVI.step_of = real
    results["noise"] = pv.distributed.gather([float(value) for value in seen])
    normalized, _ = fit(layers=[nn.BatchNorm1d(OBSERVED, dtype=torch.double)], num_data=60)
    buffers = [buffer.flatten().tolist() for buffer in normalized.guide.buffers()]
    results["buffers"] = pv.distributed.gather(buffers)
    results["errors"] = pv.distributed.gather(errors(folder))
    return results


def errors(folder):
    """Return what each process says to what is wrong in one of them."""
    said = []
    blocked = folder / "file"
    if pv.distributed.is_first():
        blocked.write_text("")
    for wrong in ({"out": blocked / "run"}, {"seed": pv.distributed.rank()}):
        try:
            fit(**wrong)
            said.append("nothing")
        except (ValueError, pv.DistributedError, OSError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


class Stop(BaseException):
    """Ends a run at once, as nothing that `fit` handles does."""


def job_stop(folder):
    """Train with a checkpoint after each step, and end at once in the second epoch."""
    real = run_state.RunState.count

    def count(self, loss, num_data):
        if self.progress.step == STEPS + 2:
            raise Stop
        real(self, loss, num_data)

    run_state.RunState.count = count
    try:
        fit(folder / "run", checkpoint_seconds=0.0)
    except Stop:
        return {}
    raise AssertionError("it should have stopped")


def job_resume(folder):
    """Go on to the end."""
    return numbers(*fit(folder / "run", resume=True))


def job_killed(folder):
    """Train; the last process is killed once, after the first epoch."""
    real, restarts = pv.SVI.step_of, int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    steps = []

    def step(self, *args):
        steps.append(1)
        last = pv.distributed.rank() == pv.distributed.world_size() - 1
        if len(steps) == STEPS + 3 and last and not restarts:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *args)

    pv.SVI.step_of = step
    return numbers(*fit(folder / "run")) | {"restarts": restarts, "steps taken": len(steps)}


def job_hosts(folder):
    """Train slowly, with a checkpoint after each step; say at each step how many take it."""
    real = pv.SVI.step_of

    def step(self, *args):
        time.sleep(0.1)
        if pv.distributed.is_first():
            with (folder / "steps").open("a") as file:
                file.write(f"{pv.distributed.world_size()}\n")
        return real(self, *args)

    pv.SVI.step_of = step
    return numbers(*fit(folder / "run", epochs=10, checkpoint_seconds=0.0))


def job_leave(folder):
    """Train, leave the group, and say what threads are still there."""
    fit(folder / "run")
    first = pv.distributed.is_first()
    torch.distributed.destroy_process_group()
    threads = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    if first:
        (folder / "leave-2.json").write_text(json.dumps(threads))
    os._exit(0)  # it would join the group again


def job_wait(folder):
    """Train for ever, and say when it has begun."""

    def step(self, *args):
        (folder / "begun").touch()
        return 1.0

    pv.SVI.step_of = step
    fit(folder / "run", epochs=10**6)
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    job, folder = sys.argv[1], Path(sys.argv[2])
    found = globals()[f"job_{job}"](folder)
    if pv.distributed.is_first():
        (folder / f"{job}-{pv.distributed.world_size()}.json").write_text(json.dumps(found))
