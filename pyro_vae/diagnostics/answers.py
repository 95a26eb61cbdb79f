"""The questions that a trust card answers, from its findings and from each datum."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from pyro_vae.diagnostics.findings import DATUM, VERDICTS, Finding

SHORT = {"safe": "yes", "inspect": "with care", "don't": "do not trust yet"}
NOTHING = "none is needed"
TYPICAL = 0.005  # share of simulated data below which a datum is improbable
SAFE_SHARE, DONT_SHARE = 0.05, 0.5  # of the data that are not trusted


@dataclass(frozen=True)
class Answer:
    """A question with its verdict, the reason in one sentence, and the next step."""

    question: str
    verdict: str
    reason: str
    next_step: str

    @property
    def short(self) -> str:
        """The answer in a few words."""
        return SHORT[self.verdict]


def answer_from(question: str, findings: Iterable[Finding]) -> Answer:
    """Answer a question by the worst of its findings."""
    asked = [finding for finding in findings if finding.question == question]
    worst = max(asked, key=lambda finding: VERDICTS.index(finding.verdict))
    if worst.verdict == "safe":
        names = ", ".join(finding.name for finding in asked)
        return Answer(question, "safe", f"within the limits: {names}", NOTHING)
    reason = f"{worst.name} is {worst.text} ({worst.meaning})"
    return Answer(question, worst.verdict, reason, worst.advice)


def status(per_datum: xr.Dataset, khat_threshold: float) -> np.ndarray:
    """Return the status of each datum as defined in `TrustCard.status`."""
    khat = per_datum["khat"].to_numpy()
    is_refined = "encoder_khat" in per_datum
    result = np.where(khat > khat_threshold, "uncured" if is_refined else "doubtful", "trusted")
    result = result.astype("<U10")
    if is_refined:
        failed = ~(per_datum["encoder_khat"].to_numpy() <= khat_threshold)
        result[(result == "trusted") & failed] = "cured"
    if "typicality" in per_datum:
        rare = per_datum["typicality"].to_numpy() < TYPICAL
        result[rare & (result != "uncured")] = "improbable"
    result[np.isnan(khat)] = "unknown"
    return result


def answer_on_data(kinds: np.ndarray, proposal: str) -> Answer:
    """Answer the question about single data from the status of each."""
    count = {kind: int((kinds == kind).sum()) for kind in np.unique(kinds).tolist()}
    bad = sum(count.get(kind, 0) for kind in ("doubtful", "uncured", "improbable"))
    share = bad / len(kinds)
    verdict = "safe" if share <= SAFE_SHARE else "inspect" if share <= DONT_SHARE else "don't"
    if count.get("unknown", 0) > SAFE_SHARE * len(kinds):
        verdict = max(verdict, "inspect", key=VERDICTS.index)
        return Answer(DATUM, verdict, "there are too few samples for k-hat", "raise num_samples")
    if proposal == "guide":
        reason = f"{bad} of {len(kinds)} data have k-hat above the limit"
        if not bad:
            return Answer(DATUM, verdict, reason, NOTHING)
        reason += ": they are improbable under the model, or the encoder fails on them"
        return Answer(DATUM, verdict, reason, "use refine=True, which distinguishes the two")
    reason = (
        f"{count.get('uncured', 0)} of {len(kinds)} data have k-hat above the limit after "
        f"refinement, and {count.get('improbable', 0)} are less probable than "
        f"{1 - TYPICAL:.1%} of data simulated from the model; the encoder fails on "
        f"{count.get('cured', 0)} others, and refinement cures them"
    )
    if not bad:
        return Answer(DATUM, verdict, reason, NOTHING)
    step = "leave these data out of conclusions, or sample them by mcmc_draws (see the list)"
    return Answer(DATUM, verdict, reason, step)
