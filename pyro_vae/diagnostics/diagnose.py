"""`diagnose`: run all diagnostics of a trained pair and collect them on a trust card."""

import numpy as np
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import CountOrZero, Samples, Seed, checked
from pyro_vae.data.any_data import Data
from pyro_vae.data.dataset import Dataset
from pyro_vae.diagnostics.collapse import collapse
from pyro_vae.diagnostics.findings import (
    calibration_findings,
    gap_findings,
    latent_findings,
    weight_findings,
)
from pyro_vae.diagnostics.gaps import encoder_of, gaps, without_gradient
from pyro_vae.diagnostics.sbc import sbc
from pyro_vae.diagnostics.trust_card import TrustCard
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
from pyro_vae.refinement.posterior import RefinedPosterior
from pyro_vae.refinement.refine import refine as refine_posterior


@checked
def diagnose(
    pair: AnyPair,
    x: Data,
    *,
    num_samples: Samples = 1000,
    num_gap_data: CountOrZero = 100,
    num_simulations: CountOrZero = 1000,
    refine: bool = False,
    seed: Seed = 0,
    progress: bool | None = None,
) -> TrustCard:
    """Diagnose a pair's posterior on some data.

    The card answers three questions, each with the reason and the next step: may I use the latents,
    may I quote log p(x), and may I trust this datum? Without refinement the answers are for samples
    of the guide. With it they are for the refined posterior of each datum, and the card shows what
    the guide is, what refinement reached, and which data remain uncured or are improbable.

    Several processes (`torchrun`) share the data, and each returns the same card.

    Args:
        pair: Object with `.model` and `.guide`. Every latent is in the plate over the data.
        x: At least two data, shape `(num_data, *event)`, preferably not from the training set; or a
            tuple `(x, y, ...)` or a `DataLoader` as for `fit`.
        num_samples: Number of weighted samples for each datum.
        num_gap_data: Number of data for the inference gaps, which optimize q for each datum; 0
            omits the gaps. They are also omitted if the guide has no `posterior.encoder`, or no
            reparameterized samples of a latent.
        num_simulations: Number of data to simulate for the calibration; 0 omits it.
        refine: Whether to refine the posterior of each datum, and of each simulated datum. All
            latents must be continuous. It takes several times as long.
        seed: Random seed. The global random state is restored.
        progress: Whether to show a progress bar; by default if standard error is a terminal.

    Returns:
        The trust card. `print` shows it as text.

    Raises:
        PairError: If a latent is outside the plate over the data, or cannot be refined, or if the
            guide's support leaves out latents with p(x, z) > 0 or it is a point mass.
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
    with unchanged(pair.model, pair.guide):
        sampler = Sampler(pair, data.batch(slice(2)))
        sampler.check_weights()
        has_gaps = encoder_of(pair) is not None and not without_gradient(sampler)
    refined = None
    if refine:
        refined = refine_posterior(
            pair, data, num_samples=num_samples, seed=seed, progress=progress
        )
    guide = _per_datum(pair, data, num_samples, seed, progress)
    latents = collapse(pair, data, seed=seed, progress=progress)
    split = None
    if num_gap_data and has_gaps:
        split = gaps(pair, data.batch(slice(num_gap_data)), seed=seed, progress=progress)
    calibration = None
    if num_simulations:
        calibration = sbc(pair, data, num_simulations=num_simulations, seed=seed, progress=progress)
    threshold = khat_threshold(num_samples)
    findings = [
        *weight_findings(guide, threshold, num_samples, "guide"),
        *(() if split is None else gap_findings(split)),
        *(() if calibration is None else calibration_findings(calibration)),
    ]
    per_datum, encoder = guide, []
    if refined is not None:
        if num_simulations:
            calibration = sbc(
                pair,
                data,
                num_simulations=num_simulations,
                posterior="resampled",
                seed=seed,
                progress=progress,
            )
        per_datum, encoder = _joined(guide, refined, calibration), findings
        findings = [
            *weight_findings(per_datum, threshold, num_samples, "refined"),
            *(() if calibration is None else calibration_findings(calibration)),
        ]
    findings[2:2] = latent_findings(latents)
    return TrustCard(
        tuple(findings),
        per_datum,
        latents,
        split,
        calibration,
        threshold,
        num_samples,
        seed,
        "guide" if refined is None else "refined",
        tuple(encoder),
    )


def _joined(
    guide: xr.Dataset, refined: RefinedPosterior, calibration: xr.DataTree | None
) -> xr.Dataset:
    """Return the scores of the refined proposal together with those of the guide."""
    dtype = guide["elbo"].dtype
    scores = {
        "khat": refined.khat,
        "ess": refined.ess,
        "elbo": refined.log_weights.mean(0),
        "log_likelihood": refined.log_likelihood,
    }
    if calibration is not None:
        simulated = np.sort(calibration["evidence/log_likelihood"].to_numpy())
        below = np.searchsorted(simulated, refined.log_likelihood)
        scores["typicality"] = (below + 1) / (len(simulated) + 1)
    arrays = {name: ("data", values.astype(dtype)) for name, values in scores.items()}
    arrays |= {f"encoder_{name}": ("data", values.to_numpy()) for name, values in guide.items()}
    return xr.Dataset(arrays, guide.coords)


def _per_datum(
    pair: PairLike, data: Dataset, num_samples: int, seed: int, progress: bool | None
) -> xr.Dataset:
    def score(batch: tuple[Tensor, ...], draws: int) -> dict[str, Tensor]:
        sampler.check_weights(batch)
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
