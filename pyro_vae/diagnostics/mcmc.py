"""Samples from p(z|x) by Markov chain Monte Carlo, for comparison with the guide's q(z|x).

The guide only provides the starting points of the chains. Converged chains show what q misses, for
example a wider spread, a correlation or a second mode. Chains are slow, so use them for a few data.
The kernels are Pyro's No-U-Turn Sampler (Hoffman & Gelman 2014) and Hamiltonian Monte Carlo (Neal
2011) with a fixed trajectory length.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyro
import torch
import xarray as xr
from pyro import poutine
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from pyro_vae.arguments import Count, Samples, Seed, checked
from pyro_vae.data.any_data import Data
from pyro_vae.datatree.from_pyro_svi import from_pyro_svi
from pyro_vae.datatree.writer import SAMPLE_DIMS
from pyro_vae.pairs.check import check
from pyro_vae.pairs.inputs import dataset_of
from pyro_vae.pairs.masks import IgnoreMasks
from pyro_vae.pairs.pair import AnyPair, PairError, PairLike, Program
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.pairs.sites import (
    ConditionLatents,
    WithoutWeights,
    deterministic_sites,
    is_computed,
    sample_sites,
)
from pyro_vae.pairs.state import unchanged
from pyro_vae.pairs.supports import support_of

STARTS = 100  # samples of the guide from which the first state of a chain is taken
KERNELS: dict[str, Callable[..., HMC]] = {
    "nuts": NUTS,
    # About a quarter of the period of a Gaussian in the adapted metric (pi/2, steps rounded down).
    # Pyro's default of 2 pi is a full period: the chain returns to its starting point.
    "hmc": functools.partial(HMC, trajectory_length=2.0),
}


@checked
def mcmc_draws(
    pair: AnyPair,
    x: Data,
    *,
    num_samples: Samples = 500,
    warmup_steps: Count = 500,
    num_chains: Count = 2,
    kernel: Literal["nuts", "hmc"] = "nuts",
    seed: Seed = 0,
) -> xr.DataTree:
    """Sample the latents of each datum by MCMC, and the same number by the guide.

    Each datum has separate chains, which adapt to this datum and start at guide samples. Plot both
    with `arviz_plots.plot_forest({"MCMC": tree, "encoder": tree["encoder"]})`. Check R-hat and the
    effective sample size first (`arviz_stats.summary(tree)`): chains that have not converged cannot
    serve as a reference.

    Args:
        pair: Object with `.model` and `.guide`. Every latent is continuous and in the plate over
            the data.
        x: A few data, shape `(num_data, *event)`, or a tuple `(x, y, ...)` as for `fit`.
        num_samples: Number of samples to keep from each chain.
        warmup_steps: Number of transitions before them that adapt the step size and the diagonal
            mass matrix.
        num_chains: Number of chains of each datum, which run sequentially.
        kernel: `"nuts"`, or `"hmc"` with trajectories of length 2.
        seed: Random seed. The global random state, the parameter store and the mode of the modules
            are restored.

    Returns:
        A tree with the names, dimensions and coordinates of `from_pyro_svi`:

        - `posterior`: samples of p(z|x) of the model without weights (`poutine.scale`), and
          computed values (`pyro.deterministic`). Masked elements of latents have their prior;
        - `sample_stats`: `diverging` for each sample; for each chain and datum `acceptance_rate`,
          the share of accepted transitions, and the adapted `step_size`;
        - `encoder/posterior` and `encoder/sample_stats`: the same number of guide samples, and
          their log weights. These samples are independent; they are arranged in chains only for
          plots.

    Raises:
        PairError: If model and guide do not fit each other or x (see `check`), a latent is outside
            the plate over the data, a density depends on masked elements, or p(x, z) is 0 at all of
            100 samples of the guide.
        ValueError: If the kernel is unknown, a latent is discrete, or a number of samples, warm-up
            steps or chains is below one.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
        ... )
        >>> tree = pv.mcmc_draws(vae, torch.ones(1, 5), num_samples=3, warmup_steps=2)
        >>> tree["posterior/z"].shape, tree["encoder/posterior/z"].shape
        ((2, 3, 1, 2), (2, 3, 1, 2))

    See also: `from_pyro_svi`, `diagnose`, `ais`.
    """
    batch = dataset_of(pair, x).batch(slice(None))
    with unchanged(pair.model, pair.guide, seed=seed):
        check(pair, batch)
        sampler = Sampler(pair, batch)
        _check_continuous(pair, batch)
        # A weight of the KL divergence is no part of p(x, z). A masked element has no density.
        model = WithoutWeights()(pair.model)
        if not sampler.programs.weighted:  # a `Reparam` moves densities of masked latents
            model = IgnoreMasks()(model)
        plate = sampler.plate
        encoder = from_pyro_svi(
            pair.model,
            pair.guide,
            model_args=batch,
            num_samples=num_chains * num_samples,
            groups=("posterior", "sample_stats"),
            seed=seed,
        )
        like = encoder["posterior"].to_dataset()
        groups: dict[str, list[xr.Dataset]] = {"posterior": [], "sample_stats": []}
        for n in range(len(batch[0])):
            datum = tuple(part[n : n + 1] for part in batch)
            chains = [
                _chain(model, pair.guide, datum, KERNELS[kernel], num_samples, warmup_steps)
                for _ in range(num_chains)
            ]
            groups["posterior"].append(_posterior(chains, like.isel({plate: [n]})))
            groups["sample_stats"].append(_stats(chains, like.coords[plate][[n]]))
    attrs = {**encoder.attrs, "kernel": kernel, "warmup_steps": warmup_steps}
    # The chains of each datum have their own values of a variable outside the plate.
    whole = {name: xr.concat(parts, plate, data_vars="all") for name, parts in groups.items()}
    tree = xr.DataTree.from_dict({name: part.assign_attrs(attrs) for name, part in whole.items()})
    tree.attrs = attrs
    tree["encoder"] = encoder.map_over_datasets(_in_chains, kwargs={"num_samples": num_samples})
    return tree


def _in_chains(group: xr.Dataset, num_samples: int) -> xr.Dataset:
    """Arrange the independent samples of one chain in chains of `num_samples` samples."""
    if "draw" not in group.dims:  # the root
        return group
    one = group.isel(chain=0, drop=True).drop_vars("draw")
    spread = one.coarsen(draw=num_samples).construct(draw=SAMPLE_DIMS)
    return spread.assign_coords({dim: np.arange(spread.sizes[dim]) for dim in SAMPLE_DIMS})


def _check_continuous(pair: PairLike, batch: tuple[Tensor, ...]) -> None:
    for name, node in sample_sites(poutine.trace(pair.model).get_trace(*batch)):
        if not node["is_observed"] and support_of(node["fn"]).is_discrete:
            raise ValueError(
                f"latent {name!r} is discrete; Hamiltonian dynamics need continuous latents"
            )


@dataclass(frozen=True)
class _Chain:
    """One chain of one datum; samples by site, `(num_samples, *shape in the program)`."""

    draws: dict[str, np.ndarray]
    diverging: np.ndarray
    acceptance_rate: float
    step_size: float


def _chain(
    model: Program,
    guide: Program,
    datum: tuple[Tensor, ...],
    kernel: Callable[..., HMC],
    num_samples: int,
    warmup_steps: int,
) -> _Chain:
    start = init_to_value(values=_first_state(model, guide, datum))
    mover = kernel(model, init_strategy=start)
    diagnostics = {}

    def remember(mover: HMC, params: object, stage: str, i: int) -> None:
        if stage == "Sample" and i == num_samples - 1:  # MCMC clears the kernel afterwards
            diagnostics.update(mover.diagnostics())

    run = MCMC(mover, num_samples, warmup_steps, disable_progbar=True, hook_fn=remember)
    with torch.enable_grad():
        run.run(*datum)
    draws = run.get_samples()
    draws |= _computed(model, datum, draws)
    return _Chain(
        draws={name: value.cpu().numpy() for name, value in draws.items()},
        diverging=np.isin(np.arange(num_samples), diagnostics["divergences"]),
        acceptance_rate=diagnostics["acceptance rate"],
        step_size=mover.step_size,
    )


def _first_state(model: Program, guide: Program, datum: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return a sample of the guide at which p(x, z) is positive.

    Raises:
        PairError: If there is none among `STARTS` samples.
    """
    for _ in range(STARTS):
        start = poutine.trace(guide).get_trace(*datum)
        with torch.no_grad(), pyro.validation_enabled(False):
            joint = poutine.trace(poutine.replay(model, trace=start)).get_trace(*datum)
            if torch.as_tensor(joint.log_prob_sum()).isfinite():
                return {name: node["value"].detach() for name, node in sample_sites(start)}
    raise PairError(
        f"log p(x, z) is not finite at {STARTS} samples of the guide, so a chain cannot start: "
        "train the guide, or check that x is possible under the model"
    )


def _computed(
    model: Program, datum: tuple[Tensor, ...], draws: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the computed values of a model (`is_computed`) at samples of its latents."""
    runs = []
    for s in range(len(next(iter(draws.values())))):
        with torch.no_grad(), ConditionLatents({name: value[s] for name, value in draws.items()}):
            trace = poutine.trace(model).get_trace(*datum)
        nodes = [*sample_sites(trace), *deterministic_sites(trace)]
        runs.append({name: node["value"] for name, node in nodes if is_computed(node)})
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


def _posterior(chains: list[_Chain], like: xr.Dataset) -> xr.Dataset:
    """Arrange the chains of one datum like the guide samples of it."""
    draws = {
        name: (var.dims, np.stack([c.draws[str(name)].reshape(-1, *var.shape[2:]) for c in chains]))
        for name, var in like.data_vars.items()
    }
    return xr.Dataset(draws, like.drop_vars(SAMPLE_DIMS).coords).assign_coords(_numbers(chains))


def _stats(chains: list[_Chain], datum: xr.DataArray) -> xr.Dataset:
    plate = str(datum.name)

    def gather(name: str) -> np.ndarray:
        return np.array([getattr(chain, name) for chain in chains])[..., None]

    stats = {
        "diverging": ((*SAMPLE_DIMS, plate), gather("diverging")),
        "acceptance_rate": (("chain", plate), gather("acceptance_rate")),
        "step_size": (("chain", plate), gather("step_size")),
    }
    return xr.Dataset(stats, {plate: datum}).assign_coords(_numbers(chains))


def _numbers(chains: list[_Chain]) -> dict[str, np.ndarray]:
    return {"chain": np.arange(len(chains)), "draw": np.arange(len(chains[0].diverging))}
