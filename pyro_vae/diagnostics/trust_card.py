"""The trust card: diagnostics of a trained pair's posterior with a verdict.

Each finding has an explanation and a verdict: safe, inspect or don't. The findings answer three
questions, and the verdict of the card is the worst of all.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import xarray as xr
from rich.table import Table

from pyro_vae.arguments import FilePath, checked
from pyro_vae.diagnostics.answers import Answer, answer_from, answer_on_data, status
from pyro_vae.diagnostics.collapse import Collapse
from pyro_vae.diagnostics.findings import EVIDENCE, LATENTS, VERDICTS, Finding
from pyro_vae.diagnostics.gaps import Gaps
from pyro_vae.runtime.files import JSONObject
from pyro_vae.runtime.records import write_json_result
from pyro_vae.runtime.tables import rendered


@dataclass(frozen=True)
class TrustCard:
    """Diagnostics of a posterior, overall and for each datum, as returned by `diagnose`.

    Printing a card shows its findings as a table.

    Attributes:
        findings: Numbers that determine the verdict. Those on weights and calibration are of the
            proposal.
        per_datum: `khat`, `ess`, `elbo` and `log_likelihood` (nats) of the proposal along the
            dimension `data`. If it is refined, also `encoder_khat`, `encoder_ess`, `encoder_elbo`
            and `encoder_log_likelihood` and, with simulations, `typicality`: the share of data
            simulated from the model that are less probable.
        latents: Use of the latents.
        gaps: Inference gaps of the first data; None if the guide has no encoder to optimize, or a
            latent without reparameterized samples.
        calibration: Tree of `pyro_vae.sbc` for the proposal; None if it was not computed.
        khat_threshold: Limit of k-hat; above it, log p(x) of a datum is unreliable.
        num_samples: K, number of weighted samples for each datum.
        seed: Random seed.
        proposal: Distribution of the samples, `"guide"` or `"refined"`.
        encoder: Numbers of the guide, if the proposal is refined. They do not change the verdict.

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
    proposal: str = "guide"
    encoder: tuple[Finding, ...] = ()

    @property
    def num_data(self) -> int:
        """Number of diagnosed data."""
        return self.per_datum.sizes["data"]

    @property
    def verdict(self) -> str:
        """The worst verdict of findings and answers: `safe`, `inspect` or `don't`."""
        verdicts = [finding.verdict for finding in self.findings]
        verdicts += [answer.verdict for answer in self.answers]
        return max(verdicts, key=VERDICTS.index)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """Answers to the three questions of the card, each with a reason and the next step."""
        asked = [
            answer_from(question, self.findings)
            for question in (LATENTS, EVIDENCE)
            if any(finding.question == question for finding in self.findings)
        ]
        return (*asked, answer_on_data(self.status(), self.proposal))

    def status(self) -> np.ndarray:
        """Return the status of each datum, an array of strings.

        `"trusted"`: k-hat is below the limit. `"unknown"`: there are too few samples for k-hat.
        For the guide, `"doubtful"`: k-hat is above the limit. For a refined proposal:

        - `"cured"`: the guide's k-hat is above the limit, and that of the refined proposal below;
        - `"uncured"`: k-hat of the refined proposal is above the limit;
        - `"improbable"`: log p(x) is reliable, and lower than for 99.5% of simulated data.
        """
        return status(self.per_datum, self.khat_threshold)

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
            "proposal": self.proposal,
            "answers": [asdict(answer) for answer in self.answers],
            "data": {
                str(kind): np.flatnonzero(self.status() == kind).tolist()
                for kind in np.unique(self.status())
                if kind != "trusted"
            },
            "findings": _as_json(self.findings),
            "encoder": _as_json(self.encoder),
        }

    @checked
    def save(self, path: FilePath) -> None:
        """Write the card as JSON, atomically."""
        write_json_result(path, self.summary())

    def __rich__(self) -> Table:
        table = Table(
            "",
            "finding",
            "value",
            "meaning",
            title=f"Trust card: {self.verdict}",
            caption=f"{self.num_data} data, proposal {self.proposal}; {self.latents.verdict}",
        )
        for answer in self.answers:
            said = f"{answer.reason}. Next step: {answer.next_step}"
            table.add_row(answer.verdict, answer.question, answer.short, said, style="bold")
        table.add_section()
        for finding in self.findings:
            table.add_row(finding.verdict, finding.name, finding.text, finding.meaning)
        if self.encoder:
            table.add_section()
        for finding in self.encoder:
            table.add_row("encoder", finding.name, finding.text, finding.meaning)
        return table

    def __str__(self) -> str:
        return rendered(self, width=110)


def _as_json(findings: Iterable[Finding]) -> JSONObject:
    return {
        finding.name: {
            "value": finding.value if math.isfinite(finding.value) else None,
            "unit": finding.unit,
            "verdict": finding.verdict,
            "meaning": finding.meaning,
        }
        for finding in findings
    }
