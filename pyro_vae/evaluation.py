"""Scores of a trained pair, per datum: ELBO, its two terms, log p(x), and their k-hat.

Nothing here changes a weight. All scores are read off one array of log weights.
"""

import math
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyro_vae.data.dataset import Data, as_dataset
from pyro_vae.engine.guards import modules_of
from pyro_vae.engine.matmul import fast_layers
from pyro_vae.pairs.check import check_data
from pyro_vae.pairs.chunking import CHUNK_DRAWS, data_per_chunk, map_chunks
from pyro_vae.pairs.khat import khat_threshold
from pyro_vae.pairs.log_weights import check_finite, elbo, importance_bound, pareto_khat
from pyro_vae.pairs.pair import PairLike
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.runtime.devices import device_of, evaluating
from pyro_vae.runtime.random_state import preserved_state

DESCRIPTIONS = {
    "elbo": "ELBO",
    "reconstruction": "reconstruction, E log p(x|z)",
    "kl": "KL(q(z|x) || p(z))",
    "log_likelihood": "log p(x)",
}


@dataclass(frozen=True)
class Evaluation:
    """Scores in nats, arrays of shape `(num_data,)` in the data's float type.

    `elbo` = `reconstruction` - `kl`, each a mean over the same `num_samples` draws;
    `log_likelihood` is the importance-weighted bound with as many, which rises to log p(x);
    `khat` above `khat_threshold` marks the data whose log p(x) is not to be relied on.
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

    @property
    def num_data(self) -> int:
        """Number of data that were scored."""
        return len(self.elbo)

    @property
    def khat_threshold(self) -> float:
        """min(1 - 1/log10(K), 0.7): Vehtari et al. (2024)."""
        return khat_threshold(self.num_samples)

    def mean(self, score: str) -> float:
        """Return the mean of a score over the data."""
        return float(np.mean(getattr(self, score), dtype=np.float64))

    def se(self, score: str) -> float:
        """Return the standard error of that mean, over the data; NaN for a single datum."""
        values = np.asarray(getattr(self, score), dtype=np.float64)
        return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan

    @property
    def share_unreliable(self) -> float:
        """Share of the data whose k-hat is above the threshold; NaN where K is too small to say."""
        known = ~np.isnan(self.khat)
        return float((self.khat[known] > self.khat_threshold).mean()) if known.any() else math.nan

    def metrics(self) -> dict[str, float | int | None]:
        """Return means and standard errors under the names that `metrics.json` has them.

        What K is too small to say is None, as JSON knows no NaN.
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
            "too few draws for k-hat"
            if math.isnan(unreliable)
            else f"k-hat above {self.khat_threshold:.2f} for {unreliable:.1%} of the data"
        )
        caption = (
            f"{self.dataset}, {self.num_data:,} data, binarization {self.binarization},\n"
            f"K = {self.num_samples}, seed {self.seed},\n{trust}"
        )
        table = Table("nats per datum", "mean", "standard error", caption=caption)
        for score, description in DESCRIPTIONS.items():
            table.add_row(description, f"{self.mean(score):.2f}", f"{self.se(score):.2f}")
        return table

    def __str__(self) -> str:
        console = Console(width=100)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def evaluate(
    pair: PairLike,
    data: Data,
    *,
    num_samples: int = 5000,
    seed: int = 0,
    progress: bool | None = None,
) -> Evaluation:
    """Score a pair on data by `num_samples` draws from the guide for each datum.

    Several processes (`torchrun`) share the data, and each returns all scores: those of one alone.
    Memory is bounded by a chunk of draws and data, whatever their number; where even that is not to
    be had, chunks are halved, with a warning. A data set whose binarization is dynamic is scored on
    its fixed draws, the same for every model.

    Args:
        pair: anything with `.model` and `.guide`.
        data: shape `(num_data, *event)`; or a tuple `(data, y, ...)`, as for `fit`. A `DataLoader`
            is passed over once, in its own order, and scored as a tensor of the same rows.
        num_samples: K, draws for each datum.
        seed: of the draws; torch's global random state is left as it was found.
        progress: show a progress bar; by default where standard error is a terminal.

    Raises:
        ValueError: when K is below 1, the data do not fit the pair, or a score is not finite.
        MemoryError: when there is no memory for one draw of one datum.

    Warns:
        MemoryWarning: when memory ran out and smaller chunks are taken, whose noise is another.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples (K) must be at least 1, got {num_samples}")
    dataset = as_dataset(data).to(device_of(pair.model, pair.guide))
    check_data(pair, dataset)
    programs = pair.model, pair.guide

    def score(batch: tuple[Tensor, ...], draws: int) -> dict[str, Tensor]:
        return _scores(sampler, batch, num_samples, draws)

    # Each chunk would otherwise enter and leave `evaluating`.
    with preserved_state(), evaluating(*programs), fast_layers(modules_of(*programs)):
        sampler = Sampler(pair, dataset.batch(slice(2)))
        found = map_chunks(
            dataset,
            score,
            rows=data_per_chunk(dataset.event_shape, num_samples),
            seed=seed,
            draws=min(num_samples, CHUNK_DRAWS),
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
    )


def _scores(
    sampler: Sampler, batch: tuple[Tensor, ...], num_samples: int, chunk_draws: int
) -> dict[str, Tensor]:
    draws = sampler.log_weights(batch, num_samples, chunk_draws)
    weights = draws.log_weights
    reconstruction = elbo(draws.log_likelihood)
    scores = {
        "elbo": elbo(weights),
        "reconstruction": reconstruction,
        "kl": reconstruction - elbo(weights),
        "log_likelihood": importance_bound(weights),
        "khat": pareto_khat(weights),
    }
    return {name: score.to("cpu", batch[0].dtype) for name, score in scores.items()}
