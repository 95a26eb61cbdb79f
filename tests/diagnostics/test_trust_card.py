"""The trust card: good and bad guides, and settings that are refused."""

import json

import pytest

import pyro_vae as pv
from tests.support.linear_gaussian import ExactPosterior, linear_vae
from tests.support.spoilt import Deaf, mean_field


def test_the_trust_card_tells_a_good_guide_from_a_bad_one(tmp_path):
    vae, x = mean_field()
    good = pv.diagnose(vae, x, num_gap_data=10)
    assert good.verdict != "don't"
    assert good.gaps is not None
    vae, x = mean_field(scale=0.4)
    bad = pv.diagnose(vae, x, num_gap_data=10)
    assert bad.verdict == "don't"
    assert any("k-hat" in reason for reason in bad.reasons)
    khat = bad.per_datum["khat"].to_numpy()
    assert khat[bad.worst(3)[0]] == khat.max()
    bad.save(tmp_path / "card.json")
    saved = json.loads((tmp_path / "card.json").read_text())
    assert saved["verdict"] == "don't"
    assert all(finding["meaning"] for finding in saved["findings"].values())
    for finding in bad.findings:
        assert finding.name in str(bad)


def test_the_trust_card_of_the_exact_posterior_is_safe():
    vae, x = linear_vae()
    card = pv.diagnose(vae, x.repeat(10, 1))
    assert card.gaps is None  # it has no encoder
    assert [f.verdict for f in card.findings if "prior" not in f.name] == ["safe"] * 6
    assert card.per_datum["ess"].to_numpy() == pytest.approx(1000)


def test_a_deaf_decoder_is_not_to_be_trusted():
    vae, x = linear_vae(ExactPosterior)
    card = pv.diagnose(pv.VAE(vae.model.prior, Deaf(), vae.guide.posterior), x, num_simulations=0)
    assert card.verdict == "don't"
    assert any("decoder sensitivity to z" in reason for reason in card.reasons)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda vae, x: pv.sbc(vae, num_draws=0),
            "num_draws must be a whole number of at least 1",
        ),
        (
            lambda vae, x: pv.ais(vae, x, num_chains=0),
            "num_chains must be a whole number of at least 1",
        ),
        (lambda vae, x: pv.collapse(vae, x[:1]), "at least 2 data"),
    ],
)
def test_bad_settings_get_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(*linear_vae())
