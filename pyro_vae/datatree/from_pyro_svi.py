"""Samples of any Pyro model and guide as an `xarray.DataTree` for ArviZ."""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, TypeAlias

import torch
import xarray as xr

from pyro_vae.arguments import Count, FilePath, Instance, Samples, Seed, checked
from pyro_vae.data.conversion import as_tensor
from pyro_vae.data.dataset import Dataset
from pyro_vae.datatree.collector import PRIOR_SAMPLES, Block, GroupCollector, Shared
from pyro_vae.datatree.resampler import Resampler
from pyro_vae.datatree.writer import Coords, Labels, TreeWriter
from pyro_vae.distributed import from_first
from pyro_vae.pairs.batching import Batch
from pyro_vae.pairs.checked_rows import SupportCheck
from pyro_vae.pairs.chunking import over_chunks, progress_bar
from pyro_vae.pairs.coverage import depends_on_data, uncovered
from pyro_vae.pairs.inputs import check_has_values
from pyro_vae.pairs.pair import AnyProgram, Program
from pyro_vae.pairs.runner import PairRunner
from pyro_vae.pairs.state import unchanged
from pyro_vae.runtime.random_state import seed_chunk
from pyro_vae.runtime.versions import version

GROUPS = ("posterior", "sample_stats", "log_likelihood", "observed_data", "posterior_predictive")
PRIOR_GROUPS = ("prior", "prior_predictive", "log_prior")
# Elements of the largest array of one block of data with all samples: 64 MB of float32.
BLOCK_ELEMENTS = 2**24


ModelArgs: TypeAlias = Annotated[
    tuple[object, ...],
    Instance((tuple, list), "a tuple of the arguments of model and guide", hint="such as (x,)"),
]


@checked
def from_pyro_svi(
    model: AnyProgram,
    guide: AnyProgram,
    *,
    model_args: ModelArgs = (),
    model_kwargs: Mapping[str, object] | None = None,
    num_samples: Samples = 500,
    posterior: Literal["guide", "resampled"] = "guide",
    groups: Iterable[str] = GROUPS,
    obs_plate: str | None = None,
    batch_size: Count | None = None,
    coords: Coords | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: Seed | None = None,
    store: FilePath | None = None,
    progress: bool | None = None,
) -> xr.DataTree:
    """Sample from a guide or the posterior and collect the results in the groups of ArviZ.

    The dimensions are `chain` (of size one, because the samples are independent), `draw`, the names
    of the plates, and the event dimensions: `latent_dim` for the only local latent of a VAE,
    otherwise `dims`, or `{site}_dim_{i}` as in ArviZ. The groups are:

    - `posterior`: latents sampled from the guide or the posterior, and the values that the model
      computes from them: `pyro.deterministic` sites and latents with a `Reparam` of Pyro;
    - `sample_stats`: `log_weight` = log p(x, z) - log q(z|x) and `log_q`, in nats. They are given
      for each datum if every latent, observation and factor is in the plate over the data,
      otherwise jointly for all data and latents. With `posterior="resampled"`, `log_weight` is
      that of the candidates, and `khat` and `ess` show how good they are for each datum;
    - `log_likelihood`: log p(x|z) of each observed site and datum. Do not use it with `arviz.loo`
      if latents are local: without its datum, a latent has its prior distribution. Use
      `pyro_vae.elpd_marginal` to score held-out data;
    - `observed_data`: the data; `posterior_predictive`: samples of the observed sites;
    - on request `prior`, `prior_predictive`, and `log_prior` at the samples of the posterior.

    Several processes (`torchrun`) share the batches, and each returns the tree of a single process.
    Data run in batches and samples in chunks, so memory holds little more than the result, or one
    block of it with `store`. If memory runs out, batches and chunks are halved. Modules run in
    evaluation mode; their mode, the global random state and Pyro's parameter store are restored.

    Args:
        model: Pyro model.
        guide: Guide of the model: a function, a module or an `AutoGuide`.
        model_args: Arguments of both: tensors, arrays, `pyro_vae` datasets, or other objects.
        model_kwargs: Keyword arguments of both.
        num_samples: Number of samples of each latent.
        posterior: Source of the samples. `"guide"` is q(z|x). `"resampled"` is p(z|x): the proposal
            of each datum is refined, 1000 fresh draws from it are candidates, and the samples are
            chosen from them by Pareto smoothed weights, as in `RefinedPosterior.sample`. If `khat`
            of a datum is above 0.7, its samples are not from the posterior. Every latent must be
            continuous and in the plate over the data, and the programs must run on any part of the
            data. The attributes of the tree name the source.
        groups: Names of the groups to collect.
        obs_plate: Name of the plate over the data. The default is `"data"` or, if there is no such
            plate, the plate of the observed sites with one entry for each row of the data.
        batch_size: Number of data in a batch if the programs treat data independently. The default
            is the number that fits a block of 64 MB.
        coords: Coordinates by dimension. Plates count from 0 by default. A subsampled plate over
            the data is run on all data; other subsampled plates are refused.
        dims: Names of the event dimensions by site.
        seed: Random seed; the same seed and batch size give the same tree.
        store: Folder of a zarr store to write block by block; the tree reads from it.
        progress: Whether to show a progress bar; by default if standard error is a terminal.

    Returns:
        The tree.

    Raises:
        PairError: If model and guide do not fit each other or their arguments, if a subsampled
            plate cannot be run on all data, or if a latent cannot be resampled.
        ValueError: If `num_samples` is below 1, a group is unknown, or names and sizes of sites,
            dimensions and coordinates conflict.
        MemoryError: If there is not enough memory for one sample of one datum.

    Warns:
        MemoryWarning: If memory runs out. Smaller chunks are used and the Monte Carlo noise
            differs.
        UserWarning: If `log_weight` is left out, because the guide is a point mass, or its support
            leaves out latents with p(x, z) > 0.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
        ... )
        >>> tree = pv.from_pyro_svi(
        ...     vae.model, vae.guide, model_args=(torch.ones(3, 5),), num_samples=4
        ... )
        >>> sorted(tree.children)[:3], tree["posterior/z"].dims
        (['log_likelihood', 'observed_data', 'posterior'], ('chain', 'draw', 'data', 'latent_dim'))

    See also: `elpd_marginal`, `refine`, `mcmc_draws`, `evaluate`.
    """
    groups = _check_groups(groups)
    attrs = _attributes(model, guide, model_args)
    args = tuple(_as_tensor(value) for value in model_args)
    kwargs = {name: _as_tensor(value) for name, value in (model_kwargs or {}).items()}
    check_has_values(model, guide, *args, *kwargs.values())
    base = from_first(_draw_seed) if seed is None else seed
    with torch.no_grad(), unchanged(model, guide, seed=base):
        programs = PairRunner(model, guide, args, kwargs, obs_plate=obs_plate, deterministic=True)
        if PRIOR_SAMPLES & set(groups):
            programs.check_prior()
        labels = Labels(dims or {}, coords or {}, _only_local_latent(programs))
        rows = batch_size or max(1, BLOCK_ELEMENTS // (programs.datum_size * num_samples))
        resampler, unweighted = None, _uncovered(programs, rows) if posterior == "guide" else ""
        if posterior == "resampled":
            resampler = Resampler(model, guide, programs)
            attrs |= {**resampler.attributes, "seed": base}
        blocks = GroupCollector(programs, labels, num_samples, groups, resampler, unweighted)
        writer = TreeWriter(programs.data_plate, coords or {}, attrs, store)
        batches = list(programs.batches(rows))
        _check_supports(programs, rows)
        with progress_bar("sampling", programs.num_data, progress) as report:
            for block, num_data in _blocks(blocks, batches, base):
                if not writer.num_data:
                    plate = programs.data_plate
                    labels.check(block, {} if plate is None else {plate: programs.num_data})
                writer.add(block, num_data)
                report(writer.num_data)
        if "sample_stats" in groups and not programs.per_datum:
            writer.add(blocks.joint_stats())
    blocks.warn()
    return writer.finish()


def _check_supports(programs: PairRunner, rows: int) -> None:
    """Check all data against the supports of their distributions, in batches that fit in memory."""
    while rows:  # memory may not suffice for a whole batch
        with contextlib.suppress(MemoryError):
            check = SupportCheck(programs.observed, next(programs.batches(1)), nan_passes=True)
            for batch in programs.batches(rows):
                check(batch, int(batch.indices[0]) if len(batch.indices) else 0)
            return
        rows //= 2


def _uncovered(programs: PairRunner, rows: int) -> str:
    """Return why weights of the guide's samples do not estimate p(x), for a few or for all data."""
    reason = uncovered(programs)
    if not reason and depends_on_data(programs):
        reason = uncovered(programs, programs.batches(rows))
    return reason


def _blocks(collector: GroupCollector, batches: list[Batch], seed: int) -> Iterator[Block]:
    """Yield the blocks of all batches in order. Several processes share the batches."""

    def first() -> tuple[list[Block], Shared | None]:
        seed_chunk(seed, 0)
        return collector.collect(batches[0]), collector.shared

    # The latents outside the data plate are sampled with the first batch.
    blocks, collector.shared = from_first(first)
    yield from blocks
    others = [
        (place, functools.partial(batches.__getitem__, place)) for place in range(1, len(batches))
    ]
    for blocks in over_chunks(others, lambda place, batch: collector.collect(batch), seed=seed):
        yield from blocks


def _draw_seed() -> int:
    """Return a seed from torch's random state without changing the state."""
    with torch.random.fork_rng():
        return int(torch.randint(2**32, ()))


def _check_groups(groups: Iterable[str]) -> tuple[str, ...]:
    groups = tuple(groups)
    unknown = sorted(set(groups) - {*GROUPS, *PRIOR_GROUPS})
    if unknown or not groups:
        raise ValueError(f"unknown groups {unknown}; expected some of {[*GROUPS, *PRIOR_GROUPS]}")
    return groups


def _as_tensor(value: object) -> object:
    if isinstance(value, Dataset):
        return value[:]
    return as_tensor(value)


def _attributes(
    model: Program, guide: Program, model_args: tuple[object, ...]
) -> dict[str, str | int]:
    def name_of(program: Program) -> str:
        named = program if hasattr(program, "__qualname__") else type(program)
        return f"{named.__module__}.{named.__qualname__}"

    attrs: dict[str, str | int] = {
        "inference_library": "pyro",
        "inference_library_version": version("pyro-ppl"),
        "creation_library": "pyro_vae",
        "creation_library_version": version("pyro-vae"),
        "model": name_of(model),
        "guide": name_of(guide),
        "posterior": "guide",
        "proposal": "guide",
    }
    for data in model_args:
        if isinstance(data, Dataset):
            attrs |= {"dataset": data.name, "binarization": data.binarization}
    return attrs


def _only_local_latent(programs: PairRunner) -> str | None:
    """Return the name of the local latent with one event dimension if there is exactly one."""
    vectors = [name for name, event_dim in programs.local_latents.items() if event_dim == 1]
    return vectors[0] if len(vectors) == 1 else None
