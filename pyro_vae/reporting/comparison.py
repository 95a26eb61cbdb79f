"""Compare log p(x) of several models on the same data, by paired differences."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import EllipsisType

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from rich.table import Column, Table
from rich.text import Text

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError
from pyro_vae.distributions.entrywise import PartlyObserved, SideBySide, support_of
from pyro_vae.distributions.independent import unwrap_independent
from pyro_vae.evaluation import Evaluation, evaluate
from pyro_vae.models.any_vae import AnyVAE
from pyro_vae.runtime.random_state import preserved_state
from pyro_vae.runtime.tables import rendered


@dataclass(frozen=True)
class Comparison:
    """Scores of several models on the same data.

    Attributes:
        scores: Scores of each model by name.
    """

    scores: dict[str, Evaluation]

    def difference(self, name: str, other: str) -> tuple[float, float]:
        """Return the mean of log p(x) of one model minus that of another, and its standard error.

        The differences are paired: one for each datum.
        """
        first, second = (
            np.asarray(self.scores[n].log_likelihood, np.float64) for n in (name, other)
        )
        paired = first - second
        error = paired.std(ddof=1) / math.sqrt(len(paired)) if len(paired) > 1 else math.nan
        return float(paired.mean()), float(error)

    def __rich__(self) -> Table:
        best = max(self.scores, key=lambda name: self.scores[name].mean("log_likelihood"))
        shown = self.scores[best]
        caption = (
            f"{shown.dataset}, {shown.num_data:,} data, binarization {shown.binarization},\n"
            f"K = {shown.num_samples}, seed {shown.seed}; differences are paired"
        )
        table = Table(
            Column("nats per datum", overflow="fold"),
            "log p(x)", "standard error", "minus best", "standard error",
            "k-hat too high", caption=Text(caption),
        )  # fmt: skip
        for name, scores in self.scores.items():
            difference, error = self.difference(name, best)
            behind = ("best", "") if name == best else (f"{difference:.3f}", f"{error:.3f}")
            own = (f"{scores.mean('log_likelihood'):.3f}", f"{scores.se('log_likelihood'):.3f}")
            table.add_row(Text(name), *own, *behind, f"{scores.share_unreliable:.1%}")
        return table

    def __str__(self) -> str:
        return rendered(self, width=100)


def compare(
    models: Mapping[str, tuple[AnyVAE, Dataset]], *, num_samples: int, seed: int = 0
) -> Comparison:
    """Score several models on the same data.

    Args:
        models: Model and test data of each run by name.
        num_samples: K, number of samples for each datum.
        seed: Random seed, the same for all models.

    Raises:
        DataError: If data or binarization differ, or if one likelihood is a density in an entry and
            another one a probability.
    """
    (first, (vae, data)), *others = models.items()
    for name, (other_vae, other) in others:
        differ = _difference(data, other) or (
            "one likelihood has densities and the other probabilities of the same entries"
            if not torch.equal(_is_discrete(vae, data), _is_discrete(other_vae, other))
            else ""
        )
        if differ:
            raise DataError(f"{first} and {name} cannot be compared: {differ}")
    scores = {
        name: evaluate(pair, test, num_samples=num_samples, seed=seed)
        for name, (pair, test) in models.items()
    }
    return Comparison(scores)


def _difference(data: Dataset, other: Dataset) -> str:
    """Return why two datasets differ; "" if they have the same rows."""
    if data.binarization != other.binarization:
        return f"their binarizations are {data.binarization!r} and {other.binarization!r}"
    if (len(data), data.event_shape) != (len(other), other.event_shape):
        shapes = [(len(rows), *rows.event_shape) for rows in (data, other)]
        return f"their test data have the shapes {shapes[0]} and {shapes[1]}"
    for (_, read), (_, read_other) in zip(data.chunks(4096), other.chunks(4096), strict=True):
        if not torch.equal(*(x()[0].nan_to_num(-1e30) for x in (read, read_other))):
            return "their test data differ. Were they split with the same seed?"
    return ""


def _is_discrete(vae: AnyVAE, data: Dataset) -> torch.Tensor:
    """Return whether each entry of x has a probability, not a density."""
    x, *context = data.batch(slice(1))
    with torch.no_grad(), preserved_state(seed=0):
        entries = unwrap_independent(vae.decode(vae.encode(x, *context).sample(), *context))
    if isinstance(entries, PartlyObserved):
        entries = entries.entries
    parts: list[tuple[TorchDistribution, list[int] | EllipsisType]] = [(entries, ...)]
    if isinstance(entries, SideBySide):
        parts = list(zip(entries.columns, map(list, entries.places), strict=True))
    found = torch.zeros(data.event_shape, dtype=torch.bool)
    for part, places in parts:
        found[places] = support_of(part).is_discrete
    return found
