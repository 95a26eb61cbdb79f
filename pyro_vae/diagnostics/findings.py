"""The numbers of a trust card, each with its limits, its meaning and the next step.

The limits are conventions.
"""

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from pyro_vae.diagnostics.collapse import Collapse
from pyro_vae.diagnostics.gaps import Gaps

VERDICTS = ("safe", "inspect", "don't")
SBC_LEVEL = 0.9
COVERAGE_ERRORS = 3.5  # standard errors that the worst of some tens of intervals may differ by
LATENTS, EVIDENCE, DATUM = (
    "May I use the latents?",
    "May I quote log p(x)?",
    "May I trust this datum?",
)
COLLAPSE_ADVICE = (
    "train longer, anneal the KL by objectives.Beta, or give it free bits by objectives.FreeBits"
)
# Name of each proposal and of its samples, and next steps for k-hat and effective sample size.
NAMES_OF = {
    "guide": (
        "q",
        "guide's samples",
        (
            "quote the bound of a refined proposal: refine=True, evaluate(proposal='refined')",
            "use samples of from_pyro_svi(..., posterior='resampled')",
        ),
    ),
    "refined": (
        "the refined proposal",
        "weighted draws",
        (
            "refine with more rounds and samples, or bound log p(x) of these data by "
            "ais(start='refined')",
            "raise num_samples",
        ),
    ),
}


@dataclass(frozen=True)
class Finding:
    """One number of the card with its limits and its meaning.

    The verdict is "safe" up to `safe` and "don't" above `dont`. If larger values are better, `safe`
    is above `dont` and the comparisons are reversed.

    Attributes:
        name: Name of the number.
        value: The number; NaN if it is unknown.
        unit: Its unit.
        safe: Limit of the verdict "safe".
        dont: Limit of the verdict "don't".
        meaning: What the number says about the posterior.
        question: The question of the card that it answers: `LATENTS` or `EVIDENCE`.
        advice: The next step if the verdict is not "safe".
    """

    name: str
    value: float
    unit: str
    safe: float
    dont: float
    meaning: str
    question: str = ""
    advice: str = ""

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


def weight_findings(
    scores: xr.Dataset, threshold: float, num_samples: int, proposal: str
) -> list[Finding]:
    """Return findings on the importance weights of a proposal, `"guide"` or `"refined"`."""
    khat = scores["khat"].to_numpy()
    known = khat[~np.isnan(khat)]
    share = float((known > threshold).mean()) if len(known) else math.nan
    q, samples, next_steps = NAMES_OF[proposal]
    return [
        Finding(
            "share of k-hat above the limit",
            share,
            "of the data",
            safe=0.05,
            dont=0.5,
            meaning=f"k-hat > {threshold:.2f}: {q} misses mass of the posterior, and log p(x) of "
            "these data is unreliable",
            question=EVIDENCE,
            advice=next_steps[0],
        ),
        Finding(
            "median effective sample size",
            float(scores["ess"].median()),
            f"of {num_samples}",
            safe=0.05 * num_samples,
            dont=0.002 * num_samples,
            meaning=f"number of exact posterior samples equivalent to the {samples} of a typical "
            "datum",
            question=LATENTS,
            advice=next_steps[1],
        ),
    ]


def latent_findings(latents: Collapse) -> list[Finding]:
    """Return findings on the use of the latents."""
    off = np.abs(latents.aggregate_mean).max()
    spread = np.abs(np.log(latents.aggregate_sd)).max()
    return [
        Finding(
            "active units",
            float(latents.active.sum()),
            f"of {len(latents.active)}",
            safe=1,
            dont=0.5,
            meaning="latents with a posterior mean that has a variance over the data above 0.01 of "
            "the prior variance",
            question=LATENTS,
            advice=COLLAPSE_ADVICE,
        ),
        Finding(
            "decoder sensitivity to z",
            latents.reconstruction_drop,
            "nats",
            safe=0.1,
            dont=0.01,
            meaning="decrease of E log p(x|z) when x gets the z of another datum; a decoder that "
            "ignores z has 0",
            question=LATENTS,
            advice=COLLAPSE_ADVICE,
        ),
        Finding(
            "aggregate posterior against prior",
            float(max(off, spread)),
            "prior sds",
            safe=0.3,
            dont=2.0,
            meaning="distance of the latents of all data from the prior (mean, or log of the sd, "
            "worst latent); if it is large, the decoder is not trained on samples from the prior",
            question=LATENTS,
            advice="train longer, or choose a prior that adapts to the data: priors.VampPrior, "
            "priors.Flow",
        ),
    ]


def gap_findings(split: Gaps) -> list[Finding]:
    """Return findings on the inference gaps of a guide."""
    return [
        Finding(
            "approximation gap",
            float(split.approximation.mean()),
            "nats",
            safe=1,
            dont=20,
            meaning="part of log p(x) - ELBO due to the guide's family",
            question=LATENTS,
            advice="choose a richer family: guides.FullNormal, guides.Flow; or use refine=True",
        ),
        Finding(
            "amortization gap",
            float(split.amortization.mean()),
            "nats",
            safe=1,
            dont=20,
            meaning="part of log p(x) - ELBO because the encoder does not return the best q of its "
            "family",
            question=LATENTS,
            advice="train longer or with a larger encoder, or use refine=True",
        ),
    ]


def calibration_findings(tree: xr.DataTree) -> list[Finding]:
    """Return findings on the calibration of single latents and of all latents together."""
    advice = (
        "use samples of pyro_vae.from_pyro_svi(..., posterior='resampled'), or a richer guide"
        if tree.attrs.get("posterior", "guide") == "guide"
        else "use more candidates, or compare a few data with pyro_vae.mcmc_draws"
    )
    where, worst = _worst_coverage(tree)
    noise = math.sqrt(SBC_LEVEL * (1 - SBC_LEVEL) / tree["prior_sbc"].sizes["draw"])
    p_values = np.concatenate(
        [
            value.to_numpy().ravel()
            for group in ("uniformity", "joint_uniformity")
            for value in tree[group].to_dataset().values()
        ]
    )
    return [
        Finding(
            "error of the 90% intervals",
            float(abs(worst - SBC_LEVEL)),
            "of coverage",
            safe=max(0.05, COVERAGE_ERRORS * noise),
            dont=0.3,
            meaning=f"on data simulated from the model, {worst:.0%} of the 90% {where} contain the "
            "true value",
            question=LATENTS,
            advice=advice,
        ),
        Finding(
            "calibration test",
            float(min(1.0, p_values.min() * len(p_values))),
            "p-value",
            safe=1e-3,
            dont=0.0,
            meaning="a small p-value shows that the samples are not exactly from the posterior of "
            "the model (SBC of each latent, regions of highest density and TARP, Bonferroni)",
            question=LATENTS,
            advice=advice,
        ),
    ]


def _worst_coverage(tree: xr.DataTree) -> tuple[str, float]:
    """Return the coverage of the worst 90% intervals or regions, and which these are."""
    groups = {"intervals of the worst latent": "coverage", "regions": "joint_coverage"}
    found = [
        (where, float(share))
        for where, group in groups.items()
        for name, values in tree[group].to_dataset().sel(level=SBC_LEVEL).items()
        if name != "tarp" or group == "coverage"
        for share in values.to_numpy().ravel()
    ]
    return max(found, key=lambda pair: abs(pair[1] - SBC_LEVEL))
