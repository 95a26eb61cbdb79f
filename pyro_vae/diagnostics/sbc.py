"""Simulation-based calibration (SBC): whether q(z|x) is the posterior of its model.

Talts et al. (2018): for z* ~ p(z), x ~ p(x|z*) and L samples z ~ q(z|x), the rank of z* among the
samples is uniform on 0..L if q is the posterior. A guide that is too narrow gives too many ranks at
both ends; a shifted guide gives too many at one end. The test uses data simulated from the model,
not real data.

Each latent can be calibrated although q misses their dependence. Two ranks of all latents together
are therefore uniform as well if q is the posterior: see `joint_ranks`.
"""

from typing import Literal

import numpy as np
import torch
import xarray as xr
from scipy.special import chdtrc
from torch import Tensor

from pyro_vae.arguments import Count, Seed, checked
from pyro_vae.data.any_data import Data, as_dataset
from pyro_vae.datatree.writer import Labels, Variables
from pyro_vae.diagnostics.joint_ranks import Reference, log_densities
from pyro_vae.pairs.check import check_data
from pyro_vae.pairs.chunking import data_per_chunk, fitting, map_chunks
from pyro_vae.pairs.inputs import check_has_values, dataset_of
from pyro_vae.pairs.log_weights import importance_bound, pareto_khat
from pyro_vae.pairs.pair import AnyPair, PairLike
from pyro_vae.pairs.sampler import Sampler, simulate
from pyro_vae.pairs.state import unchanged
from pyro_vae.refinement.refiner import NUM_CANDIDATES, NUM_ROUNDS, Refiner

LEVELS = (0.5, 0.8, 0.9, 0.95)
NUM_BINS = 16
JOINT = {"density", "tarp"}  # ranks of all latents together
LATENT, EVIDENCE = "latent/", "evidence/"  # prefixes of the names of results


@checked
def sbc(
    pair: AnyPair,
    x: Data | None = None,
    *,
    num_simulations: Count = 1000,
    num_draws: Count = 63,
    posterior: Literal["guide", "resampled"] = "guide",
    seed: Seed = 0,
    progress: bool | None = None,
) -> xr.DataTree:
    """Simulate data from a pair's model and rank the true latents among samples of the posterior.

    Args:
        pair: Object with `.model` and `.guide`, at least one latent for each datum and one observed
            site.
        x: Data of the shape and dtype to simulate; their values are not used. A `VAE` needs no
            data. The context rows of a tuple `(x, y, ...)` or a `DataLoader` are used in turn, one
            for each simulation.
        num_simulations: N, number of data to simulate.
        num_draws: L, number of samples for each datum.
        posterior: Source of the samples: `"guide"`, or `"resampled"` for those of
            `RefinedPosterior.sample`, with 1000 candidates.
        seed: Random seed. The global random state is restored.
        progress: Whether to show a progress bar; by default if standard error is a terminal.

    Returns:
        A tree. `prior_sbc` contains u = (rank + 1/2) / (L + 1) for each latent and each
        simulation, along the dimension `draw`; plot it with `arviz_plots.plot_ecdf_pit(tree)`.
        `uniformity` contains the p-value of a chi-square test that u is uniform. `coverage`
        contains the share of simulations with the true latent inside the central interval of each
        `level`; its expectation is the level if q is the posterior, for any L.

        `joint_sbc`, `joint_uniformity` and `joint_coverage` contain the same of all latents
        together: `density`, the rank of the density at the truth, which is not available for a
        guide without a density at given values, and `tarp`, that of the distance to a random point
        (Lemos et al. 2023). Plot the ranks with `plot_ecdf_pit(tree, group="joint_sbc")`. The
        coverage of `density` is that of the highest density region of each level.

        With `posterior="resampled"`, `evidence` contains `log_likelihood`, the bound of log p(x) of
        each simulated datum, and its `khat`.

    Raises:
        PairError: If a latent is outside the plate over the data, or cannot be resampled. If the
            pair does not fit x, or `evaluate` refuses its guide: its density is of another kind
            than the prior's, or its support leaves out latents with p(x, z) > 0.
        ValueError: If there is less than one simulation or sample, or more than one observed site.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
        ... )
        >>> tree = pv.sbc(vae, num_simulations=20, num_draws=7)
        >>> tree["prior_sbc/z"].dims, tree["prior_sbc/z"].shape
        (('chain', 'draw', 'latent_dim'), (1, 20, 2))

    See also: `diagnose`, `plots.calibration`, `bidirectional`.
    """

    def score(batch: tuple[Tensor, ...], _: int) -> dict[str, Tensor]:
        places = range(int(batch[0][0]), int(batch[0][-1]) + 1)
        latents, simulated = simulate(sampler.programs, template, places)
        if refiner is None:
            draws, evidence = sampler.draw(simulated, num_draws).latents, {}
        else:
            found = refiner.sample(simulated, num_draws)
            draws, evidence = found.latents, _evidence(found.log_weights)
        ranks = {f"{LATENT}{name}": _ranks(value, draws[name]) for name, value in latents.items()}
        pairs = {"tarp": reference.distances(simulated, latents, draws)}
        if has_density:
            pairs["density"] = log_densities(
                sampler, simulated, latents, draws, exact=refiner is not None
            )
        return {**ranks, **evidence, **{name: _ranks(*pair) for name, pair in pairs.items()}}

    check_has_values(pair.model, pair.guide)
    with torch.no_grad(), unchanged(pair.model, pair.guide, seed=seed):
        template = _template(pair, x, num_simulations)
        check_data(pair, as_dataset(template), weighted=posterior == "guide")
        sampler = Sampler(pair, template)
        refiner, rows = None, data_per_chunk(template[0].shape[1:], num_draws)
        if posterior == "guide":
            sampler.check_weights()
        else:
            refiner = Refiner(sampler, NUM_ROUNDS, NUM_CANDIDATES)
            rows, _ = refiner.chunk_sizes(template, num_simulations)
        has_density = refiner is not None or sampler.has_density
        reference = Reference(sampler, template)
        rows, _ = fitting(rows, num_draws, sampler.draw, template)
        found = map_chunks(
            as_dataset(torch.arange(num_simulations, dtype=torch.float64)),  # positions
            score,
            rows=rows,
            seed=seed,
            description="SBC",
            progress=progress,
        )
    arrays = {name: values.numpy() for name, values in found.items()}
    tree = _tree(arrays, num_draws)
    source = {"posterior": posterior, "proposal": "guide" if refiner is None else "refined"}
    tree.attrs = {"num_draws": num_draws, "seed": seed, **source, "creation_library": "pyro_vae"}
    return tree


def _template(pair: PairLike, x: Data | None, count: int) -> tuple[Tensor, ...]:
    if x is None:
        # The model of a VAE samples data if it is called without data.
        return (torch.as_tensor(pair.model(num_data=2)),)
    data = dataset_of(pair, x)
    return data.batch(slice(max(2, count)))


def _ranks(value: Tensor, draws: Tensor) -> Tensor:
    """Return the number of samples below a value; ties of discrete latents are broken randomly."""
    below = (draws < value).sum(0)
    equal = (draws == value).sum(0)
    return below + (torch.rand(equal.shape, device=equal.device) * (equal + 1)).long()


def _evidence(log_weights: Tensor) -> dict[str, Tensor]:
    scores = {"log_likelihood": importance_bound(log_weights), "khat": pareto_khat(log_weights)}
    return {f"{EVIDENCE}{name}": values for name, values in scores.items()}


def _tree(found: dict[str, np.ndarray], num_draws: int) -> xr.DataTree:
    ranks = {n.removeprefix(LATENT): r for n, r in found.items() if n.startswith(LATENT)}
    vectors = [name for name, rank in ranks.items() if rank.ndim == 2]
    labels = Labels({}, {}, vectors[0] if len(vectors) == 1 else None)
    groups: Variables = {"prior_sbc": {}, "uniformity": {}, "coverage": {}}
    for name, rank in ranks.items():
        dims = labels.of(name, (), rank.ndim - 1)
        inside = [coverage(rank, num_draws, level) for level in LEVELS]
        _add(groups, "", name, dims, rank, num_draws, np.stack(inside))
    groups |= {"joint_sbc": {}, "joint_uniformity": {}, "joint_coverage": {}}
    for name in JOINT & found.keys():
        rank = found[name]
        # The region of highest density contains ranks from the top, the ball of TARP from below.
        ends = [(1 - level, 1.0) if name == "density" else (0.0, level) for level in LEVELS]
        inside = [share_between(rank, num_draws, *pair) for pair in ends]
        _add(groups, "joint_", name, (), rank, num_draws, np.stack(inside))
    evidence = {n.removeprefix(EVIDENCE): v for n, v in found.items() if n.startswith(EVIDENCE)}
    if evidence:
        groups["evidence"] = {name: (("draw",), values) for name, values in evidence.items()}
    tree = xr.DataTree.from_dict({name: xr.Dataset(group) for name, group in groups.items()})
    # plot_ecdf_pit of ArviZ 1.x needs coordinates for every dimension.
    for group in tree.children.values():
        coords = {dim: np.arange(size) for dim, size in group.sizes.items()}
        coords |= {"level": np.array(LEVELS)} if "level" in coords else {}
        group.dataset = group.to_dataset().assign_coords(coords)
    return tree


def _add(
    groups: Variables,
    prefix: str,
    name: str,
    dims: tuple[str, ...],
    rank: np.ndarray,
    num_draws: int,
    inside: np.ndarray,
) -> None:
    """Add ranks on 0..L, their test and their coverage to the groups."""
    sbc_group = "joint_sbc" if prefix else "prior_sbc"
    groups[sbc_group][name] = (("chain", "draw", *dims), ((rank + 0.5) / (num_draws + 1))[None])
    groups[f"{prefix}uniformity"][name] = (dims, uniformity(rank, num_draws))
    groups[f"{prefix}coverage"][name] = (("level", *dims), inside)


def coverage(ranks: np.ndarray, num_draws: int, level: float) -> np.ndarray:
    """Return the share of ranks on 0..L inside the central interval of a level for each latent.

    Rank r is the part from r / (L + 1) to (r + 1) / (L + 1) of the unit interval, and counts by the
    share of this part that is inside. Uniform ranks therefore give the level exactly, also if the
    ends of the interval are between two ranks.

    Args:
        ranks: Ranks of shape `(num_simulations, *event)`.
        num_draws: L, the largest possible rank.
        level: Probability of the interval.
    """
    return share_between(ranks, num_draws, (1 - level) / 2, (1 + level) / 2)


def share_between(ranks: np.ndarray, num_draws: int, start: float, end: float) -> np.ndarray:
    """Return the share of ranks on 0..L between two points of the unit interval, as `coverage`."""
    low, high = start * (num_draws + 1), end * (num_draws + 1)
    inside = np.minimum(ranks + 1, high) - np.maximum(ranks, low)
    return inside.clip(0, 1).mean(axis=0)


def uniformity(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    """Return the p-value of a chi-square test that ranks on 0..L are uniform for each latent.

    Args:
        ranks: Ranks of shape `(num_simulations, *event)`.
        num_draws: L, the largest possible rank.
    """
    num_bins = min(NUM_BINS, num_draws + 1)
    bins = np.arange(num_draws + 1) * num_bins // (num_draws + 1)
    expected = len(ranks) * np.bincount(bins) / (num_draws + 1)
    observed = np.stack([(bins[ranks] == b).sum(axis=0) for b in range(num_bins)], axis=-1)
    statistic = ((observed - expected) ** 2 / expected).sum(axis=-1)
    return chdtrc(num_bins - 1, statistic)
