"""One card that says how far a trained pair's posterior can be trusted, and why.

Each finding has a line of plain words and a verdict: safe, inspect or don't. The card's own verdict
is the worst of them. The limits are conventions, named here, of what has been seen to mislead.
"""

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyro_vae.data.dataset import Data, Dataset, as_dataset
from pyro_vae.diagnostics.collapse import Collapse, collapse
from pyro_vae.diagnostics.gaps import Gaps, gaps
from pyro_vae.diagnostics.sbc import sbc
from pyro_vae.pairs.check import check_data
from pyro_vae.pairs.chunking import CHUNK_DRAWS, data_per_chunk, map_chunks
from pyro_vae.pairs.khat import khat_threshold
from pyro_vae.pairs.log_weights import (
    check_finite,
    effective_sample_size,
    elbo,
    importance_bound,
    pareto_khat,
)
from pyro_vae.pairs.pair import PairLike
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.runtime.devices import device_of
from pyro_vae.runtime.files import write_json
from pyro_vae.runtime.random_state import preserved_state

VERDICTS = ("safe", "inspect", "don't")
SBC_LEVEL = 0.9


@dataclass(frozen=True)
class Finding:
    """One number of the card: what it is, what it means, and what follows.

    Up to `safe` it is harmless, above `dont` it forbids; a finding where more is better has
    `safe` above `dont`.
    """

    name: str
    value: float
    unit: str
    safe: float
    dont: float
    meaning: str

    @property
    def verdict(self) -> str:
        """Return safe, inspect or don't; a finding that is not a number is to be inspected."""
        if math.isnan(self.value):
            return "inspect"
        sign = 1 if self.safe <= self.dont else -1
        if sign * self.value <= sign * self.safe:
            return "safe"
        return "inspect" if sign * self.value <= sign * self.dont else "don't"

    @property
    def text(self) -> str:
        """The value, rounded, with its unit."""
        if math.isnan(self.value):
            return "not known"
        if self.unit in ("of the data", "of coverage"):
            return f"{self.value:.1%} {self.unit}"
        if self.unit == "p-value":
            return "p < 0.0001" if self.value < 1e-4 else f"p = {self.value:.2g}"
        return f"{self.value:.3g} {self.unit}"


@dataclass(frozen=True)
class TrustCard:
    """How far to trust a posterior, overall and datum by datum.

    Attributes:
        findings: the numbers that the verdict stands on.
        per_datum: `khat`, `ess`, `elbo` and `log_likelihood` (nats) of each of the `data`.
        latents: what the latents carry.
        gaps: of the first data; None where the guide has no encoder to optimize.
        calibration: the tree of `pyro_vae.sbc`; None where data cannot be simulated.
        khat_threshold: above it, a datum's log p(x) is not to be relied on.
        num_samples: K, draws from the guide for each datum.
        seed: of all draws.
    """

    findings: tuple[Finding, ...]
    per_datum: xr.Dataset
    latents: Collapse
    gaps: Gaps | None
    calibration: xr.DataTree | None
    khat_threshold: float
    num_samples: int
    seed: int

    @property
    def num_data(self) -> int:
        """Number of data that were looked at."""
        return self.per_datum.sizes["data"]

    @property
    def verdict(self) -> str:
        """The worst verdict of a finding: `safe`, `inspect` or `don't`."""
        return max((finding.verdict for finding in self.findings), key=VERDICTS.index)

    @property
    def reasons(self) -> list[str]:
        """What speaks against trusting, the gravest first; empty where nothing does."""
        doubtful = [finding for finding in self.findings if finding.verdict != "safe"]
        doubtful.sort(key=lambda finding: -VERDICTS.index(finding.verdict))
        return [f"{finding.verdict}: {finding.name} is {finding.text}" for finding in doubtful]

    def worst(self, count: int) -> np.ndarray:
        """Return the indices of the data with the highest k-hat, the highest first."""
        return np.argsort(-np.nan_to_num(self.per_datum["khat"].to_numpy(), nan=-np.inf))[:count]

    def summary(self) -> dict[str, Any]:
        """Return the card as data for JSON."""
        return {
            "verdict": self.verdict,
            "reasons": self.reasons,
            "num_data": self.num_data,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "latents": self.latents.verdict,
            "findings": {
                finding.name: {
                    "value": finding.value if math.isfinite(finding.value) else None,
                    "unit": finding.unit,
                    "verdict": finding.verdict,
                    "meaning": finding.meaning,
                }
                for finding in self.findings
            },
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the card as JSON, whole or not at all."""
        write_json(path, self.summary())

    def __rich__(self) -> Table:
        table = Table(
            "",
            "finding",
            "value",
            "in plain words",
            title=f"Trust card: {self.verdict}",
            caption=f"{self.num_data} data; {self.latents.verdict}",
        )
        for finding in self.findings:
            table.add_row(finding.verdict, finding.name, finding.text, finding.meaning)
        return table

    def __str__(self) -> str:
        console = Console(width=110)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def diagnose(
    pair: PairLike,
    x: Data,
    *,
    num_samples: int = 1000,
    num_gap_data: int = 100,
    num_simulations: int = 1000,
    seed: int = 0,
    progress: bool | None = None,
) -> TrustCard:
    """Measure how far a pair's posterior can be trusted on some data.

    Args:
        pair: anything with `.model` and `.guide`, every latent in the plate over the data.
        x: at least two data, shape `(num_data, *event)`, best those that training has not seen; or
            a tuple `(x, y, ...)` or a `DataLoader`, as for `fit`.
        num_samples: draws from the guide for each datum.
        num_gap_data: the first so many data are taken for the gaps, which are found by optimizing
            each datum's q: 0 leaves them out.
        num_simulations: data to simulate for the calibration: 0 leaves it out.
        seed: of all draws; the random state is left as it was found.
        progress: Whether to show a progress bar; by default if standard error is a terminal.

    Raises:
        PairError: when a latent stands outside the plate over the data.
        ValueError: for fewer than two data.
    """
    data = as_dataset(x).to(device_of(pair.model, pair.guide))
    if len(data) < 2:
        raise ValueError(f"at least two data are needed to compare, got {len(data)}")
    check_data(pair, data)
    per_datum = _per_datum(pair, data, num_samples, seed, progress)
    latents = collapse(pair, data, seed=seed, progress=progress)
    has_encoder = hasattr(getattr(pair.guide, "posterior", None), "encoder")
    split = None
    if num_gap_data and has_encoder:
        split = gaps(pair, data.batch(slice(num_gap_data)), seed=seed, progress=progress)
    calibration = None
    if num_simulations:
        calibration = sbc(pair, data, num_simulations=num_simulations, seed=seed, progress=progress)
    threshold = khat_threshold(num_samples)
    findings = [
        *_weight_findings(per_datum, threshold, num_samples),
        *_latent_findings(latents),
        *(() if split is None else _gap_findings(split)),
        *(() if calibration is None else _calibration_findings(calibration)),
    ]
    return TrustCard(
        tuple(findings), per_datum, latents, split, calibration, threshold, num_samples, seed
    )


def _per_datum(
    pair: PairLike, data: Dataset, num_samples: int, seed: int, progress: bool | None
) -> xr.Dataset:
    rows = data_per_chunk(data.event_shape, num_samples)

    def score(batch: tuple[Tensor, ...], draws: int) -> dict[str, Tensor]:
        weights = sampler.log_weights(batch, num_samples, draws).log_weights
        return {
            "khat": pareto_khat(weights),
            "ess": effective_sample_size(weights),
            "elbo": elbo(weights),
            "log_likelihood": importance_bound(weights),
        }

    with preserved_state(seed):
        sampler = Sampler(pair, data.batch(slice(2)))
        found = map_chunks(
            data,
            score,
            rows=rows,
            seed=seed,
            draws=min(num_samples, CHUNK_DRAWS),
            description="log weights",
            progress=progress,
        )
    arrays = {name: ("data", values.numpy()) for name, values in found.items()}
    check_finite(arrays["log_likelihood"][1])
    return xr.Dataset(arrays, {"data": np.arange(len(arrays["khat"][1]))})


def _weight_findings(scores: xr.Dataset, threshold: float, num_samples: int) -> list[Finding]:
    khat = scores["khat"].to_numpy()
    known = khat[~np.isnan(khat)]
    share = float((known > threshold).mean()) if len(known) else math.nan
    return [
        Finding(
            "share of k-hat above the limit",
            share,
            "of the data",
            safe=0.05,
            dont=0.5,
            meaning=f"k-hat > {threshold:.2f}: q misses mass of the posterior, and log p(x) of "
            "these data is not to be relied on",
        ),
        Finding(
            "median effective sample size",
            float(scores["ess"].median()),
            f"of {num_samples}",
            safe=0.05 * num_samples,
            dont=0.002 * num_samples,
            meaning="so many exact draws are worth the guide's draws of a typical datum",
        ),
    ]


def _latent_findings(latents: Collapse) -> list[Finding]:
    off = np.abs(latents.aggregate_mean).max()
    spread = np.abs(np.log(latents.aggregate_sd)).max()
    return [
        Finding(
            "active units",
            float(latents.active.sum()),
            f"of {len(latents.active)}",
            safe=1,
            dont=0.5,
            meaning="latents whose posterior mean varies over the data by more than 0.01",
        ),
        Finding(
            "what the decoder hears",
            latents.reconstruction_drop,
            "nats",
            safe=0.1,
            dont=0.01,
            meaning="E log p(x|z) loses so much when x gets another datum's z; 0 is a decoder that "
            "ignores z",
        ),
        Finding(
            "aggregate posterior against prior",
            float(max(off, spread)),
            "prior sds",
            safe=0.3,
            dont=2.0,
            meaning="how far the latents of all data lie from the prior (mean, or log of the sd, "
            "worst latent); draws from the prior meet what the decoder has not learned",
        ),
    ]


def _gap_findings(split: Gaps) -> list[Finding]:
    return [
        Finding(
            "approximation gap",
            float(split.approximation.mean()),
            "nats",
            safe=1,
            dont=20,
            meaning="the ELBO loses so much since no q of the guide's family is the posterior",
        ),
        Finding(
            "amortization gap",
            float(split.amortization.mean()),
            "nats",
            safe=1,
            dont=20,
            meaning="the ELBO loses so much more since the encoder does not find the best q of its "
            "family",
        ),
    ]


def _calibration_findings(tree: xr.DataTree) -> list[Finding]:
    coverage = tree["coverage"].to_dataset().sel(level=SBC_LEVEL)
    values = np.concatenate([value.to_numpy().ravel() for value in coverage.values()])
    worst = values[np.abs(values - SBC_LEVEL).argmax()]
    tests = tree["uniformity"].to_dataset()
    p_values = np.concatenate([value.to_numpy().ravel() for value in tests.values()])
    return [
        Finding(
            "error of the 90% intervals",
            float(abs(worst - SBC_LEVEL)),
            "of coverage",
            safe=0.05,
            dont=0.3,
            meaning=f"on data of the model's own, 90% intervals of the worst latent hold the true "
            f"one in {worst:.0%}",
        ),
        Finding(
            "calibration test",
            float(min(1.0, p_values.min() * len(p_values))),
            "p-value",
            safe=1e-3,
            dont=0.0,
            meaning="a small p-value says that q is not exactly the posterior of its own model "
            "(SBC, worst latent, Bonferroni)",
        ),
    ]
