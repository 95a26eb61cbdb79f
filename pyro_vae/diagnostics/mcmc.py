"""Draws from p(z|x) by Markov chain Monte Carlo beside those of the encoder's q(z|x).

Chains owe the guide no more than where they begin. Run to convergence, they show what q leaves out:
too narrow a spread, a correlation, a second mode. They are slow, so that they serve a handful of
data. Pyro's own kernels run: the No-U-Turn Sampler (Hoffman & Gelman 2014), or Hamiltonian Monte
Carlo (Neal 2011) of a fixed trajectory length.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from pyro import poutine
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from pyro_vae.data.dataset import Data, as_dataset
from pyro_vae.datatree.from_pyro_svi import from_pyro_svi
from pyro_vae.datatree.writer import SAMPLE_DIMS
from pyro_vae.pairs.check import check
from pyro_vae.pairs.pair import PairLike
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.pairs.sites import sample_sites
from pyro_vae.runtime.devices import device_of, evaluating
from pyro_vae.runtime.random_state import preserved_state

KERNELS: dict[str, Callable[..., HMC]] = {
    "nuts": NUTS,
    # About a quarter of the period of a Gaussian in the adapted metric (pi/2, steps rounded down),
    # after which momentum has become position. Pyro's own 2 pi is a whole period: the chain comes
    # back to where it was.
    "hmc": functools.partial(HMC, trajectory_length=2.0),
}


def mcmc_draws(
    pair: PairLike,
    x: Data,
    *,
    num_samples: int = 500,
    warmup_steps: int = 500,
    num_chains: int = 2,
    kernel: str = "nuts",
    seed: int = 0,
) -> xr.DataTree:
    """Draw the latents of each datum by MCMC, and as many by the guide.

    Each datum has chains of its own, which adapt to it alone and begin at draws from the guide. In
    `arviz_plots.plot_forest({"MCMC": tree, "encoder": tree["encoder"]})` both stand side by side.
    Look at R-hat and effective sample size first (`arviz_stats.summary(tree)`): chains that have
    not converged judge nobody.

    Args:
        pair: anything with `.model` and `.guide`, every latent continuous and in the plate over
            the data.
        x: a handful of data, shape `(num_data, *event)`; or a tuple `(x, y, ...)`, as for `fit`.
        num_samples: draws of each chain that are kept.
        warmup_steps: transitions before them, in which step size and diagonal mass matrix adapt.
        num_chains: chains of each datum, run one after the other.
        kernel: `"nuts"`, or `"hmc"` with trajectories of length 2.
        seed: of all draws. The random state, the parameter store and the modules' mode are left as
            they were found.

    Returns:
        A tree with the names, dimensions and coordinates of `from_pyro_svi`:

        - `posterior`: the chains' draws;
        - `sample_stats`: `diverging` for each draw; for each chain and datum `acceptance_rate`, the
          share of transitions that moved, and the adapted `step_size`;
        - `encoder/posterior`, as many draws from the guide, and `encoder/sample_stats`, their log
          weights. They are independent: chains are only where they stand, for plots of both.

    Raises:
        PairError: when model and guide do not fit each other or x (see `check`), or a latent stands
            outside the plate over the data.
        ValueError: for an unknown kernel, a discrete latent, or fewer than one draw, warm-up step
            or chain.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r} is unknown: choose of {sorted(KERNELS)}")
    if min(num_samples, warmup_steps, num_chains) < 1:
        raise ValueError(
            "num_samples, warmup_steps and num_chains must be at least 1, got "
            f"{num_samples}, {warmup_steps}, {num_chains}"
        )
    batch = as_dataset(x).to(device_of(pair.model, pair.guide)).batch(slice(None))
    with preserved_state(seed), evaluating(pair.model, pair.guide):
        check(pair, batch)
        plate = Sampler(pair, batch).plate
        _check_continuous(pair, batch)
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
                _chain(pair, datum, KERNELS[kernel], num_samples, warmup_steps)
                for _ in range(num_chains)
            ]
            groups["posterior"].append(_posterior(chains, like.isel({plate: [n]})))
            groups["sample_stats"].append(_stats(chains, like.coords[plate][[n]]))
    attrs = {**encoder.attrs, "kernel": kernel, "warmup_steps": warmup_steps}
    tree = xr.DataTree.from_dict(
        {name: xr.concat(parts, plate).assign_attrs(attrs) for name, parts in groups.items()}
    )
    tree.attrs = attrs
    tree["encoder"] = encoder.map_over_datasets(_in_chains, kwargs={"num_samples": num_samples})
    return tree


def _in_chains(group: xr.Dataset, num_samples: int) -> xr.Dataset:
    """Spread the independent draws of one chain over chains of `num_samples` draws."""
    if "draw" not in group.dims:  # the root
        return group
    one = group.isel(chain=0, drop=True).drop_vars("draw")
    spread = one.coarsen(draw=num_samples).construct(draw=SAMPLE_DIMS)
    return spread.assign_coords({dim: np.arange(spread.sizes[dim]) for dim in SAMPLE_DIMS})


def _check_continuous(pair: PairLike, batch: tuple[Tensor, ...]) -> None:
    for name, node in sample_sites(poutine.trace(pair.model).get_trace(*batch)):
        if not node["is_observed"] and node["fn"].support.is_discrete:
            raise ValueError(
                f"latent {name!r} is discrete: Hamiltonian dynamics need continuous latents"
            )


@dataclass(frozen=True)
class _Chain:
    """One chain of one datum; draws by site, `(num_samples, *shape in the program)`."""

    draws: dict[str, np.ndarray]
    diverging: np.ndarray
    acceptance_rate: float
    step_size: float


def _chain(
    pair: PairLike,
    datum: tuple[Tensor, ...],
    kernel: Callable[..., HMC],
    num_samples: int,
    warmup_steps: int,
) -> _Chain:
    start = poutine.trace(pair.guide).get_trace(*datum)
    values = {name: node["value"].detach() for name, node in sample_sites(start)}
    mover = kernel(pair.model, init_strategy=init_to_value(values=values))
    diagnostics = {}

    def remember(mover: HMC, params: object, stage: str, i: int) -> None:
        if stage == "Sample" and i == num_samples - 1:  # then MCMC clears the kernel
            diagnostics.update(mover.diagnostics())

    run = MCMC(mover, num_samples, warmup_steps, disable_progbar=True, hook_fn=remember)
    run.run(*datum)
    return _Chain(
        draws={name: value.cpu().numpy() for name, value in run.get_samples().items()},
        diverging=np.isin(np.arange(num_samples), diagnostics["divergences"]),
        acceptance_rate=diagnostics["acceptance rate"],
        step_size=mover.step_size,
    )


def _posterior(chains: list[_Chain], like: xr.Dataset) -> xr.Dataset:
    """Arrange one datum's chains as the encoder's draws of it are."""
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
