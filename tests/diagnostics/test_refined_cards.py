"""Cards of refined posteriors: the encoder, what refinement reached, and which data fail."""

import json

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.diagnostics.answers import SHORT
from tests.support.linear_gaussian import ExactPosterior, linear_vae

pytestmark = pytest.mark.xdist_group("refined cards")  # a module's runs are made once

SETTINGS = {"num_samples": 200, "num_simulations": 400, "num_gap_data": 0}


class Narrow(ExactPosterior):
    """The exact mean and 0.4 times the scale: k-hat is above the limit for all data."""

    def forward(self, x):
        exact = super().forward(x)
        return dist.Normal(exact.mean, 0.4 * exact.stddev).to_event(1)


@pytest.fixture(scope="module")
def cards():
    """Cards of the same wrong encoder, without and with refinement; one datum is an outlier."""
    torch.manual_seed(0)
    vae, x = linear_vae(Narrow, dim=16, latent_dim=11)
    # Far from the model's data in a direction that the latents do not explain.
    away = torch.linalg.svd(vae.model.likelihood.weight.detach()).U[:, -1]
    x = torch.cat([x, x[:1] + 8 * away])
    return [pv.diagnose(vae, x, refine=refine, **SETTINGS) for refine in (False, True)]


def test_refinement_makes_a_card_green_that_the_encoder_made_red(cards):
    guide, refined = cards
    assert (guide.verdict, guide.proposal) == ("don't", "guide")
    assert [answer.verdict for answer in guide.answers] == ["don't"] * 3
    assert refined.proposal == "refined"
    latents, evidence, datum = refined.answers
    assert (latents.verdict, evidence.verdict, datum.verdict) == ("safe", "safe", "safe")
    assert evidence.next_step == "none is needed"
    assert [finding.value for finding in refined.encoder] == [
        finding.value
        for finding in guide.findings
        if finding.name in {encoder.name for encoder in refined.encoder}
    ]
    assert len({finding.name for finding in refined.findings}) == len(refined.findings)


def test_improbable_data_and_a_failed_encoder_are_told_apart(cards):
    guide, refined = cards
    assert (guide.status() == "doubtful").mean() > 0.9
    status = refined.status()
    assert status[-1] == "improbable"
    assert (status[:-1] == "cured").mean() > 0.8
    assert not np.isin(status, ["uncured", "unknown"]).any()
    # The share of simulated data that are less probable is uniform for data of the model.
    typical = refined.per_datum["typicality"].to_numpy()
    assert typical[-1] == pytest.approx(1 / 401)
    assert 0.2 < np.median(typical[:-1]) < 0.8


def test_the_card_is_saved_with_its_answers_and_its_former_fields(cards, tmp_path):
    for card in cards:
        card.save(tmp_path / "card.json")
        saved = json.loads((tmp_path / "card.json").read_text())
        former = {"verdict", "reasons", "num_data", "num_samples", "seed", "latents", "findings"}
        assert former <= saved.keys()
        assert saved["proposal"] == card.proposal
        assert [answer["question"] for answer in saved["answers"]] == [
            "May I use the latents?",
            "May I quote log p(x)?",
            "May I trust this datum?",
        ]
        for answer in card.answers:
            assert answer.short == SHORT[answer.verdict]
            assert answer.reason in str(card).replace("\n", " ") or len(answer.reason) > 30
            assert answer.next_step
    assert saved["data"]["improbable"] == [len(card.status()) - 1]


def test_a_card_of_few_samples_does_not_claim_to_know(cards):
    vae, x = linear_vae(Narrow)
    card = pv.diagnose(vae, x, num_samples=10, num_simulations=0, num_gap_data=0)
    assert (card.status() == "unknown").all()
    assert card.answers[2].verdict == "inspect"
    assert card.answers[2].next_step == "raise num_samples"


def test_latents_that_cannot_be_refined_are_refused_before_any_work():
    vae = pv.VAE(
        pv.priors.Categorical(3),
        pv.likelihoods.Bernoulli(pv.networks.MLP(3, [4], 5)),
        pv.guides.Categorical(pv.networks.MLP(5, [4], 3)),
    )
    with pytest.raises(pv.PairError, match="latent 'z' is discrete"):
        pv.diagnose(vae, torch.ones(4, 5), refine=True)
