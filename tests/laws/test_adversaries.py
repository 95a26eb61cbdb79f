"""Random pairs in plain Pyro are scored exactly, or refused with a sentence of the package.

The guide of each pair is the exact posterior, so that every log weight equals log p(x).
`python -m tests.laws.test_adversaries 0 200` prints what each function makes of seeds 0 to 199.
"""

import collections
import functools
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from tests.support.adversaries import Adversary, adversary

TOLERANCE = 1e-7  # relative to 1 + |log p(x)|, in float64
frozen = functools.partial(torch.optim.SGD, lr=0.0)
NUM_SAMPLES = 3


def containers(a: Adversary, folder: Path) -> Iterator[tuple[str, object]]:
    """Yield the rows of a pair in each container."""
    yield "tensors", (a.x, a.seen)
    yield "arrays", (a.x.numpy(), a.seen.numpy())
    if len(a.x) > 1:
        file = np.memmap(folder / "rows", a.x.numpy().dtype, "w+", shape=tuple(a.x.shape))
        file[:] = a.x.numpy()
        yield "memmap", (file, a.seen)
        yield "loader", DataLoader(TensorDataset(a.x, a.seen), batch_size=len(a.x) // 2 + 1)


def scores(a: Adversary, rows: object) -> tuple[object, object]:
    """Return log p(x) and the ELBO of each datum with the exact values."""
    result = pv.evaluate(pv.Pair(a.model, a.guide), rows, num_samples=NUM_SAMPLES)
    assert a.is_local, "an evaluation for each datum of data that share a latent"
    return np.stack([result.log_likelihood, result.elbo]), a.evidence.expand(2, -1)


def tree_of(a: Adversary, batch_size: int | None = None) -> object:
    """Return the tree of ArviZ."""
    return pv.from_pyro_svi(
        a.model, a.guide, model_args=(a.x, a.seen), num_samples=4, seed=1, batch_size=batch_size
    )


def weights(a: Adversary, batch_size: int | None = None) -> tuple[object, object]:
    """Return the log weights of the tree with the exact values."""
    tree = tree_of(a, batch_size)
    assert a.latents <= set(tree["posterior"].data_vars), "latents are missing in the posterior"
    weight = tree["sample_stats/log_weight"].values[0]
    return weight, a.evidence.expand(weight.shape)


def elpd(a: Adversary) -> tuple[object, object]:
    """Return the marginal log densities of ArviZ's object with the exact values."""
    assert a.is_local
    return pv.elpd_marginal(tree_of(a)).elpd_i.values, a.evidence


def step(a: Adversary, loss: object) -> tuple[object, object]:
    """Return the loss on all data, and that of Pyro's SVI, or the exact one if it has no noise."""
    losses = []
    for kind in (pyro.infer.SVI, pv.SVI):
        svi = kind(a.model, a.guide, pyro.optim.SGD({"lr": 0.0}), loss=loss)
        with torch.random.fork_rng():
            svi.evaluate_loss(a.x, a.seen)  # finds the plates, by random runs
            torch.manual_seed(0)
            losses.append(svi.evaluate_loss(a.x, a.seen))
    exact = not (a.is_subsampled or loss.vectorize_particles)
    return losses[1], -a.evidence.sum() if exact else losses[0]


def trained(a: Adversary, batch_size: int, **settings: object) -> tuple[object, object]:
    """Return the ELBO of an epoch at a learning rate of zero and log p(x) per datum."""
    pair = pv.Pair(a.model, a.guide)
    fit = pv.fit(pair, (a.x, a.seen), epochs=1, batch_size=batch_size, optimizer=frozen, **settings)
    (bound,) = (fit.history[0][k] for k in ("train_elbo", "train_objective") if k in fit.history[0])
    return bound, a.evidence.sum() / len(a.x)


def calls(a: Adversary, folder: Path) -> Iterator[tuple[str, Callable[[], tuple[object, object]]]]:
    """Yield each function with a call that returns what it gives and the exact values."""
    num_data = len(a.x)
    if a.is_local:
        for name, rows in containers(a, folder):
            yield f"evaluate {name}", functools.partial(scores, a, rows)
        yield "elpd_marginal", functools.partial(elpd, a)
    yield "from_pyro_svi", functools.partial(weights, a)
    yield "from_pyro_svi in batches", functools.partial(weights, a, max(1, num_data // 2))
    for loss in (
        Trace_ELBO(),
        Trace_ELBO(2),
        Trace_ELBO(2, vectorize_particles=True),
        TraceGraph_ELBO(),
    ):
        if loss.vectorize_particles and not a.is_vectorizable:
            continue
        name = f"SVI {type(loss).__name__} {loss.num_particles} {loss.vectorize_particles}"
        yield name, functools.partial(step, a, loss)
    if a.is_subsampled:
        return
    sizes = {num_data, max(1, num_data // 2 + 1)} if a.is_local else {num_data}
    for size in sizes:
        yield f"fit {size} of {num_data}", functools.partial(trained, a, size)
    objectives = [Trace_ELBO(2), pv.objectives.ImportanceWeighted(3)]
    for objective in objectives:
        yield (
            f"fit {type(objective).__name__}",
            functools.partial(trained, a, num_data, objective=objective),
        )


def is_own(error: BaseException) -> bool:
    """Return whether the package has raised this error with a sentence, or Pyro's SVI has."""
    where = traceback.extract_tb(error.__traceback__)
    own = str(Path(pv.__file__).parent)
    return len(str(error)) > 20 and where[-1].filename.startswith(own)


def judged(call: Callable[[], tuple[object, object]]) -> str:
    """Return "right", or a sentence on what is wrong, or the refusal."""
    before = torch.get_rng_state()
    try:
        given, expected = (torch.as_tensor(v).double() for v in call())
    except Exception as error:
        return f"{'refused' if is_own(error) else 'wrong'}: {type(error).__name__}: {error}"
    if not torch.equal(before, torch.get_rng_state()):
        return "wrong: the random state has changed"
    off = ((given - expected).abs() / (1 + expected.abs())).max().item()
    return "right" if off < TOLERANCE else f"wrong: off by {off:.2g}: {given} for {expected}"


def outcomes(seed: int) -> Iterator[tuple[str, str, Adversary]]:
    """Yield the name of each call, its outcome, and the pair."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        a = adversary(seed)
        for name, call in calls(a, Path(folder)):
            yield name, judged(call), a


def assert_right(seeds: range) -> None:
    """Most calls are right, the others are refused with a sentence, and none is wrong."""
    all_of_them = [(s, name, o, a.description) for s in seeds for name, o, a in outcomes(s)]
    wrong = [o for o in all_of_them if o[2].startswith("wrong")]
    assert not wrong, wrong[:3]
    assert sum(o[2] == "right" for o in all_of_them) > 0.7 * len(all_of_them)


@pytest.mark.parametrize("first", range(0, 20, 10))
def test_random_pairs_are_scored_exactly_or_refused(first):
    assert_right(range(first, first + 10))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(20, 2020, 100))
def test_two_thousand_random_pairs_are_scored_exactly_or_refused(first):
    assert_right(range(first, first + 100))


def main(first: int, last: int) -> None:
    """Print every wrong outcome, and count."""
    count: collections.Counter[tuple[str, str]] = collections.Counter()
    for seed in range(first, last):
        for name, outcome, a in outcomes(seed):
            kind = outcome.split(":")[0]
            count[name if kind != "right" else "all", kind] += 1
            if kind == "wrong":
                print(seed, name, "|", outcome[:300].replace("\n", " "), "|", a.description[:200])
            elif kind == "refused" and count[name, kind] < 3:
                print(seed, name, "|", outcome[:300], "|", a.description[:200])
    print(*sorted(count.items()), sep="\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
