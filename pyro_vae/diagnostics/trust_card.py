"""The trust card: diagnostics of a trained pair's posterior with a verdict.

Each finding has an explanation and a verdict: safe, inspect or don't. The verdict of the card is
the worst verdict of its findings. The limits are conventions.
"""

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from rich.table import Table
from torch import Tensor

from pyro_vae.arguments import CountOrZero, FilePath, Samples, Seed, checked
from pyro_vae.data.dataset import Data, Dataset
from pyro_vae.diagnostics.collapse import Collapse, collapse
from pyro_vae.diagnostics.gaps import Gaps, gaps
from pyro_vae.diagnostics.sbc import sbc
from pyro_vae.pairs.check import check_data
from pyro_vae.pairs.checked_rows import CheckedRows
from pyro_vae.pairs.chunking import data_per_chunk, draws_per_chunk, fitting, map_chunks
from pyro_vae.pairs.inputs import dataset_of
from pyro_vae.pairs.khat import khat_threshold
from pyro_vae.pairs.log_weights import (
    check_finite,
    effective_sample_size,
    elbo,
    importance_bound,
    pareto_khat,
)
from pyro_vae.pairs.pair import AnyPair, PairLike
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.pairs.state import unchanged
from pyro_vae.runtime.files import JSONObject, write_json
from pyro_vae.runtime.tables import rendered

VERDICTS = ("safe", "inspect", "don't")
SBC_LEVEL = 0.9


@dataclass(frozen=True)
class Finding:
    """One number of the card with its limits and its meaning.

    The verdict is "safe" up to `safe` and "don't" above `dont`. If larger values are better, `safe`
    is above `dont` and the comparisons are reversed.
    """

    name: str
    value: float
    unit: str
    safe: float
    dont: float
    meaning: str

    @property
    def verdict(self) -> str:
        """The verdict: safe, inspect or don't; NaN gives inspect."""
        if math.isnan(self.value):
            return "inspect"
        sign = 1 if self.safe <= self.dont else -1
        if sign * self.value <= sign * self.safe:
            return "safe"
        return "inspect" if sign * self.value <= sign * self.dont else "don't"

    @property
    def text(self) -> str:
        """The rounded value with its unit."""
        if math.isnan(self.value):
            return "unknown"
        if self.unit in ("of the data", "of coverage"):
            return f"{self.value:.1%} {self.unit}"
        if self.unit == "p-value":
            return "p < 0.0001" if self.value < 1e-4 else f"p = {self.value:.2g}"
        return f"{self.value:.3g} {self.unit}"


@dataclass(frozen=True)
class TrustCard:
    """Diagnostics of a posterior, overall and for each datum, as returned by `diagnose`.

    Printing a card shows its findings as a table.

    Attributes:
        findings: Numbers that determine the verdict.
        per_datum: `khat`, `ess`, `elbo` and `log_likelihood` (nats) along the dimension `data`.
        latents: Use of the latents.
        gaps: Inference gaps of the first data; None if the guide has no encoder to optimize.
        calibration: Tree of `pyro_vae.sbc`; None if it was not computed.
        khat_threshold: Limit of k-hat; above it, log p(x) of a datum is unreliable.
        num_samples: K, number of guide samples for each datum.
        seed: Random seed.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
        ... )
        >>> settings = {"num_samples": 30, "num_gap_data": 0, "num_simulations": 0}
        >>> card = pv.diagnose(vae, torch.rand(4, 5).round(), **settings)
        >>> isinstance(card, pv.TrustCard), card.verdict in ("safe", "inspect", "don't")
        (True, True)

    See also: `diagnose`, `Collapse`, `Gaps`, `sbc`.
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
        """Number of diagnosed data."""
        return self.per_datum.sizes["data"]

    @property
    def verdict(self) -> str:
        """The worst verdict of the findings: `safe`, `inspect` or `don't`."""
        return max((finding.verdict for finding in self.findings), key=VERDICTS.index)

    @property
    def reasons(self) -> list[str]:
        """The findings that are not safe as sentences, the worst first."""
        doubtful = [finding for finding in self.findings if finding.verdict != "safe"]
        doubtful.sort(key=lambda finding: -VERDICTS.index(finding.verdict))
        return [f"{finding.verdict}: {finding.name} is {finding.text}" for finding in doubtful]

    def worst(self, count: int) -> np.ndarray:
        """Return the indices of the data with the highest k-hat in descending order."""
        return np.argsort(-np.nan_to_num(self.per_datum["khat"].to_numpy(), nan=-np.inf))[:count]

    def summary(self) -> JSONObject:
        """Return the card as a dictionary that JSON can represent."""
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

    @checked
    def save(self, path: FilePath) -> None:
        """Write the card as JSON, atomically."""
        write_json(path, self.summary())

    def __rich__(self) -> Table:
        table = Table(
            "",
            "finding",
            "value",
            "meaning",
            title=f"Trust card: {self.verdict}",
            caption=f"{self.num_data} data; {self.latents.verdict}",
        )
        for finding in self.findings:
            table.add_row(finding.verdict, finding.name, finding.text, finding.meaning)
        return table

    def __str__(self) -> str:
        return rendered(self, width=110)


@checked
def diagnose(
    pair: AnyPair,
    x: Data,
    *,
    num_samples: Samples = 1000,
    num_gap_data: CountOrZero = 100,
    num_simulations: CountOrZero = 1000,
    seed: Seed = 0,
    progress: bool | None = None,
) -> TrustCard:
    """Diagnose a pair's posterior on some data.

    Several processes (`torchrun`) share the data, and each returns the same card.

    Args:
        pair: Object with `.model` and `.guide`. Every latent is in the plate over the data.
        x: At least two data, shape `(num_data, *event)`, preferably not from the training set; or a
            tuple `(x, y, ...)` or a `DataLoader` as for `fit`.
        num_samples: Number of guide samples for each datum.
        num_gap_data: Number of data for the inference gaps, which optimize q for each datum; 0
            omits the gaps.
        num_simulations: Number of data to simulate for the calibration; 0 omits it.
        seed: Random seed. The global random state is restored.
        progress: Whether to show a progress bar; by default if standard error is a terminal.

    Raises:
        PairError: If a latent is outside the plate over the data.
        ValueError: If there are fewer than two data.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        ...     pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
        ... )
        >>> card = pv.diagnose(vae, torch.rand(4, 5).round(), num_samples=30, num_gap_data=0,
        ...     num_simulations=20)
        >>> card.num_data, dict(card.per_datum["khat"].sizes)
        (4, {'data': 4})

    See also: `evaluate`, `collapse`, `gaps`, `sbc`, `ais`, `mcmc_draws`.
    """
    data = dataset_of(pair, x)
    if len(data) < 2:
        raise ValueError(f"expected at least two data, got {len(data)}")
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
    def score(batch: tuple[Tensor, ...], draws: int) -> dict[str, Tensor]:
        weights = sampler.log_weights(batch, num_samples, draws).log_weights
        return {
            "khat": pareto_khat(weights),
            "ess": effective_sample_size(weights),
            "elbo": elbo(weights),
            "log_likelihood": importance_bound(weights),
        }

    checked = CheckedRows(pair, data)
    with unchanged(pair.model, pair.guide, seed=seed):
        sampler = Sampler(pair, data.batch(slice(2)))
        rows, draws = fitting(
            data_per_chunk(data.event_shape, num_samples),
            draws_per_chunk(num_samples),
            sampler.draw,
            data.batch(slice(4)),
        )
        found = map_chunks(
            checked,
            score,
            rows=rows,
            seed=seed,
            draws=draws,
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
            "these data is unreliable",
        ),
        Finding(
            "median effective sample size",
            float(scores["ess"].median()),
            f"of {num_samples}",
            safe=0.05 * num_samples,
            dont=0.002 * num_samples,
            meaning="number of exact posterior samples equivalent to the guide's samples of a "
            "typical datum",
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
            meaning="latents with a posterior mean that has a variance over the data above 0.01",
        ),
        Finding(
            "decoder sensitivity to z",
            latents.reconstruction_drop,
            "nats",
            safe=0.1,
            dont=0.01,
            meaning="decrease of E log p(x|z) when x gets the z of another datum; a decoder that "
            "ignores z has 0",
        ),
        Finding(
            "aggregate posterior against prior",
            float(max(off, spread)),
            "prior sds",
            safe=0.3,
            dont=2.0,
            meaning="distance of the latents of all data from the prior (mean, or log of the sd, "
            "worst latent); if it is large, the decoder is not trained on samples from the prior",
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
            meaning="part of log p(x) - ELBO due to the guide's family",
        ),
        Finding(
            "amortization gap",
            float(split.amortization.mean()),
            "nats",
            safe=1,
            dont=20,
            meaning="part of log p(x) - ELBO because the encoder does not return the best q of its "
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
            meaning=f"on data simulated from the model, {worst:.0%} of the 90% intervals of the "
            "worst latent contain the true value",
        ),
        Finding(
            "calibration test",
            float(min(1.0, p_values.min() * len(p_values))),
            "p-value",
            safe=1e-3,
            dont=0.0,
            meaning="a small p-value shows that q is not exactly the posterior of its model (SBC, "
            "worst latent, Bonferroni)",
        ),
    ]
