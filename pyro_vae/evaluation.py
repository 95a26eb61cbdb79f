"""Scores of a trained pair per datum: ELBO, its two terms, log p(x), and k-hat.

All scores are computed from one array of log weights; parameters are not changed.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from pyro_vae.arguments import MAX_SAMPLES, ArgumentError, Count, Seed, checked
from pyro_vae.data.any_data import Data
from pyro_vae.data.dataset import Dataset
from pyro_vae.distributed import from_first, world_size
from pyro_vae.engine.guards import modules_of
from pyro_vae.engine.matmul import fast_layers
from pyro_vae.pairs.check import check_data
from pyro_vae.pairs.checked_rows import CheckedRows
from pyro_vae.pairs.chunking import data_per_chunk, draws_per_chunk, fitting, map_chunks
from pyro_vae.pairs.inputs import dataset_of
from pyro_vae.pairs.khat import khat_threshold
from pyro_vae.pairs.log_weights import check_finite, elbo, importance_bound, pareto_khat
from pyro_vae.pairs.pair import AnyPair, PairLike
from pyro_vae.pairs.sampler import Sampler, Weighted
from pyro_vae.pairs.state import unchanged
from pyro_vae.refinement.refiner import NUM_ROUNDS, Refiner
from pyro_vae.runtime.devices import device_of
from pyro_vae.runtime.tables import positions, rendered

TIMED, UNTIMED = 10_000, 10**8  # samples of a chunk to time, if all data have more than UNTIMED
MAX_HOURS = 24
BYTES_PER_SAMPLE = 32  # two log densities, and their copies

DESCRIPTIONS = {
    "elbo": "ELBO",
    "reconstruction": "reconstruction, E log p(x|z)",
    "kl": "KL(q(z|x) || p(z))",
    "log_likelihood": "log p(x)",
}


@dataclass(frozen=True)
class Evaluation:
    """Scores in nats, arrays of shape `(num_data,)` in the dtype of the data.

    Printing an evaluation shows the means with standard errors.

    Attributes:
        elbo: ELBO, equal to `reconstruction` - `kl`.
        reconstruction: E[log p(x|z)] under the guide.
        kl: KL(q(z|x) || p(z)), estimated with the same samples.
        log_likelihood: Importance-weighted bound with `num_samples` samples. It is a lower bound
            that converges to log p(x).
        khat: Pareto k-hat of the importance weights. The estimate of log p(x) is unreliable if
            k-hat is above `khat_threshold`.
        num_samples: K, number of samples per datum.
        seed: Random seed of the samples.
        dataset: Name of the dataset.
        binarization: Binarization of the dataset.
        proposal: Distribution of the samples, `"guide"` or `"refined"`.

    Example:
        >>> import numpy as np, pyro_vae as pv
        >>> zeros = np.zeros(3)
        >>> elbo = np.array([-3.0, -1.0, -2.0])
        >>> scores = pv.Evaluation(elbo, elbo, zeros, elbo, zeros, 100, 0, "toy", "none")
        >>> scores.num_data, scores.mean("elbo"), scores.share_unreliable
        (3, -2.0, 0.0)

    See also: `evaluate`, `TrustCard`.
    """

    elbo: np.ndarray
    reconstruction: np.ndarray
    kl: np.ndarray
    log_likelihood: np.ndarray
    khat: np.ndarray
    num_samples: int
    seed: int
    dataset: str
    binarization: str
    proposal: str = "guide"

    @property
    def num_data(self) -> int:
        """Number of scored data."""
        return len(self.elbo)

    @property
    def khat_threshold(self) -> float:
        """min(1 - 1/log10(K), 0.7): Vehtari et al. (2024)."""
        return khat_threshold(self.num_samples)

    def mean(self, score: str) -> float:
        """Return the mean of a score over the data."""
        return float(np.mean(getattr(self, score), dtype=np.float64))

    def se(self, score: str) -> float:
        """Return the standard error of the mean over the data; NaN for a single datum."""
        values = np.asarray(getattr(self, score), dtype=np.float64)
        return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan

    @property
    def share_unreliable(self) -> float:
        """Share of the data with k-hat above the threshold; NaN if K is too small for k-hat."""
        known = ~np.isnan(self.khat)
        return float((self.khat[known] > self.khat_threshold).mean()) if known.any() else math.nan

    @property
    def unreliable(self) -> np.ndarray:
        """Positions of the data with k-hat above the threshold, or without one (NaN)."""
        return np.flatnonzero(~(self.khat <= self.khat_threshold))

    def metrics(self) -> dict[str, float | int | None]:
        """Return means and standard errors under their names in `metrics.json`.

        The share of unreliable data is None if K is too small for k-hat, because JSON has no NaN.
        """
        result: dict[str, float | int | None] = {"num_importance_samples": self.num_samples}
        for score in DESCRIPTIONS:
            result[f"test_{score}"] = self.mean(score)
            result[f"test_{score}_se"] = self.se(score)
        share = self.share_unreliable
        return {**result, "test_khat_share_above_threshold": None if math.isnan(share) else share}

    def __rich__(self) -> Table:
        unreliable = self.share_unreliable
        trust = (
            "too few samples for k-hat"
            if math.isnan(unreliable)
            else f"k-hat above {self.khat_threshold:.2f} for {unreliable:.1%} of the data"
        )
        if self.proposal == "refined":  # most data are above the limit with an encoder
            trust += positions(self.unreliable.tolist())
        caption = (
            f"{self.dataset}, {self.num_data:,} data, binarization {self.binarization},\n"
            f"K = {self.num_samples}, proposal {self.proposal}, seed {self.seed},\n{trust}"
        )
        table = Table("nats per datum", "mean", "standard error", caption=Text(caption))
        for score, description in DESCRIPTIONS.items():
            table.add_row(description, f"{self.mean(score):.2f}", f"{self.se(score):.2f}")
        return table

    def __str__(self) -> str:
        return rendered(self, width=100)


@checked
def evaluate(
    pair: AnyPair,
    data: Data,
    *,
    num_samples: Count = 5000,
    proposal: Literal["guide", "refined"] = "guide",
    seed: Seed = 0,
    allow_large: bool = False,
    progress: bool | None = None,
) -> Evaluation:
    """Score a pair on data with `num_samples` guide samples for each datum.

    Several processes (`torchrun`) share the data; each returns all scores, and they equal those of
    a single process. Memory use is bounded by one chunk of samples and data. If memory runs out,
    chunks are halved, with a warning. A dataset with dynamic binarization is scored on fixed
    binary samples, the same for every model.

    Args:
        pair: Object with `.model` and `.guide`.
        data: Data of shape `(num_data, *event)`, or a tuple `(data, y, ...)` as for `fit`. A
            `DataLoader` is read once, in its order, and scored like a tensor of the same rows.
        num_samples: K, number of samples for each datum.
        proposal: Distribution of the samples: `"guide"`, or `"refined"` for that of `refine`. Its
            bounds are those of the refined proposal, which needs several times as long.
        seed: Random seed for the samples. The global random state is restored.
        allow_large: Whether to run an evaluation that is expected to take more than 24 hours, or
            has more than 10^8 samples of each datum.
        progress: Whether to show a progress bar; by default if standard error is a terminal.

    Returns:
        The scores of each datum.

    Raises:
        PairError: If the guide's samples cannot estimate p(x): its density is of another kind than
            the prior's, its support leaves out latents with p(x, z) > 0, or it is a point mass.
        ValueError: If K is below 1, the data do not fit the pair, or a score is not finite. If the
            evaluation is too large; the message has the expected time and memory.
        MemoryError: If there is not enough memory for one sample of one datum.

    Warns:
        MemoryWarning: If memory runs out. Smaller chunks are used and the Monte Carlo noise
            differs.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
        ... )
        >>> scores = pv.evaluate(vae, torch.ones(3, 5), num_samples=10)
        >>> scores.elbo.shape, bool(scores.mean("elbo") <= scores.mean("log_likelihood"))
        ((3,), True)

    See also: `diagnose`, `fit`, `report`.
    """
    dataset = dataset_of(pair, data)
    check_data(pair, dataset, weighted=proposal == "guide")
    rows = CheckedRows(pair, dataset)
    programs = pair.model, pair.guide

    def score(batch: tuple[Tensor, ...], draws: int) -> dict[str, Tensor]:
        return _scores(draw(batch, draws), batch[0].dtype)

    # Each chunk would otherwise enter and leave `evaluating`.
    with unchanged(*programs), fast_layers(modules_of(*programs)):
        if len(dataset) * num_samples > UNTIMED and not allow_large:
            _check_cost(pair, dataset, num_samples, proposal)
        draw, size, draws = _drawing(pair, dataset, num_samples, proposal)
        found = map_chunks(
            rows,
            score,
            rows=size,
            seed=seed,
            draws=draws,
            description="evaluating",
            progress=progress,
        )
    scores = {name: values.numpy() for name, values in found.items()}
    check_finite(scores["log_likelihood"])
    return Evaluation(
        **scores,
        num_samples=num_samples,
        seed=seed,
        dataset=dataset.name,
        binarization=dataset.binarization,
        proposal=proposal,
    )


def _check_cost(pair: PairLike, data: Dataset, num_samples: int, proposal: str) -> None:
    """Time `TIMED` samples of one chunk; raise `ArgumentError` if all samples take too long."""
    timed = min(num_samples, TIMED if num_samples <= MAX_SAMPLES else 1000)
    draw, size, draws = _drawing(pair, data, timed, proposal)
    batch = data.batch(slice(size))
    start = time.perf_counter()
    draw(batch, draws)
    seconds = time.perf_counter() - start
    chunks = num_samples / timed * len(data) / len(batch[0]) / world_size()
    hours = from_first(lambda: seconds * chunks / 3600)
    if num_samples > MAX_SAMPLES or hours > MAX_HOURS:
        raise ArgumentError(
            f"num_samples={num_samples:,} for each of {len(data):,} data takes about {hours:,.1f} "
            f"hours and {num_samples * BYTES_PER_SAMPLE / 1e9:,.1f} GB of memory, expected at most "
            f"{MAX_HOURS} hours and {MAX_SAMPLES:,} samples: pass fewer samples or data, or "
            "allow_large=True to evaluate"
        )


def _drawing(
    pair: PairLike, data: Dataset, num_samples: int, proposal: str
) -> tuple[Callable[[tuple[Tensor, ...], int], Weighted], int, int]:
    """Return how to sample for a chunk, and the numbers of data and of draws of a chunk."""
    few = data.batch(slice(2))
    sampler = Sampler(pair, few)
    if proposal == "refined":
        refiner = Refiner(sampler, NUM_ROUNDS, num_samples)
        return lambda batch, draws: refiner.draw(batch, draws)[1], *refiner.chunk_sizes(
            few, len(data)
        )
    sampler.check_weights()

    def drawn(batch: tuple[Tensor, ...], draws: int) -> Weighted:
        sampler.check_weights(batch)
        return sampler.log_weights(batch, num_samples, draws)

    device = device_of(pair.model, pair.guide)
    size, draws = fitting(
        data_per_chunk(data.event_shape, num_samples, device),
        draws_per_chunk(num_samples, device),
        sampler.draw,
        data.batch(slice(4)),
    )
    return drawn, size, draws


def _scores(draws: Weighted, dtype: torch.dtype) -> dict[str, Tensor]:
    weights = draws.log_weights
    reconstruction = elbo(draws.log_likelihood)
    scores = {
        "elbo": elbo(weights),
        "reconstruction": reconstruction,
        "kl": reconstruction - elbo(weights),
        "log_likelihood": importance_bound(weights),
        "khat": pareto_khat(weights),
    }
    dtype = dtype if dtype.is_floating_point else weights.dtype
    return {name: score.to("cpu", dtype) for name, score in scores.items()}
