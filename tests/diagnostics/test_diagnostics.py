"""How far to trust a posterior: exact answers of the linear-Gaussian VAE, and mutants caught."""

import json

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.diagnostics.ais import schedule
from pyro_vae.diagnostics.sbc import uniformity
from tests.support.linear_gaussian import ExactPosterior, MeanFieldPosterior, linear_vae


class Spoilt(nn.Module):
    """The exact posterior with its scale multiplied and its mean shifted."""

    def __init__(self, exact, scale=1.0, shift=0.0):
        super().__init__()
        self.exact, self.scale, self.shift = exact, scale, shift

    def forward(self, x):
        q = self.exact(x)
        return dist.MultivariateNormal(q.loc + self.shift, scale_tril=q.scale_tril * self.scale)


class Encoded(nn.Module):
    """A mean-field q whose parameters are the output of an encoder, which may be a poor one."""

    def __init__(self, mean_field, scale=1.0, shift=0.0):
        super().__init__()
        self.encoder = Spoiling(mean_field, scale, shift)

    def forward(self, x):
        loc, log_scale = self.encoder(x).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class Spoiling(nn.Module):
    def __init__(self, mean_field, scale, shift):
        super().__init__()
        self.mean_field, self.scale, self.shift = mean_field, scale, shift

    def forward(self, x):
        q = self.mean_field(x)
        return torch.cat([q.mean + self.shift, (q.stddev * self.scale).log()], dim=-1)


class Deaf(nn.Module):
    """A decoder that ignores z."""

    def forward(self, z):
        return dist.Normal(torch.zeros(*z.shape[:-1], 6, dtype=z.dtype), 1.0).to_event(1)


def spoilt(scale=1.0, shift=0.0):
    vae, x = linear_vae()
    return vae.replace(guide=Spoilt(vae.guide.posterior, scale, shift)), x


def mean_field(scale=1.0, shift=0.0):
    vae, x = linear_vae()
    best = MeanFieldPosterior(vae.model.likelihood)
    return vae.replace(guide=Encoded(best, scale, shift)), x


def log_evidence(vae, x):
    return vae.model.likelihood.marginal().log_prob(x).detach().numpy()


def approximation_gap(vae):
    """KL of the best mean field: 1/2 (sum log L_ii - log det L), L the posterior precision."""
    precision = torch.linalg.inv(vae.model.likelihood.posterior_terms()[1])
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    return gap.item()


def tree_of(vae, x, num_samples=1000):
    groups = ("posterior", "sample_stats")
    return pv.from_pyro_svi(
        vae.model, vae.guide, model_args=(x,), num_samples=num_samples, groups=groups, seed=1
    )


def test_elpd_of_the_exact_posterior_is_exact():
    vae, x = linear_vae()
    elpd = pv.elpd_marginal(tree_of(vae, x, 100))
    exact = log_evidence(vae, x)
    np.testing.assert_allclose(elpd.elpd_i, exact, atol=1e-9)
    assert elpd.elpd == pytest.approx(exact.sum(), abs=1e-8)
    assert elpd.se == pytest.approx(exact.std() * len(x) ** 0.5, rel=1e-9)
    assert not elpd.warning


def test_elpd_of_a_mean_field_is_within_a_hundredth_of_a_nat():
    vae, x = mean_field()
    elpd = pv.elpd_marginal(tree_of(vae, x, 10_000))
    assert elpd.elpd / len(x) == pytest.approx(log_evidence(vae, x).mean(), abs=0.01)


def test_elpd_says_what_it_lacks():
    vae, x = linear_vae()
    tree = pv.from_pyro_svi(
        vae.model, vae.guide, model_args=(x,), num_samples=2, groups=("posterior",)
    )
    with pytest.raises(ValueError, match="the tree has no log_weight"):
        pv.elpd_marginal(tree)


def test_a_narrow_guide_shows_in_khat_and_a_right_one_does_not():
    vae, x = spoilt(scale=0.4)
    assert (pv.elpd_marginal(tree_of(vae, x)).pareto_k > 0.7).mean() > 0.5
    vae, x = linear_vae()
    assert (pv.elpd_marginal(tree_of(vae, x)).pareto_k < 0).all()


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.7, 0.3)])
def test_gaps_equal_the_closed_form(scale, shift):
    vae, x = mean_field(scale, shift)
    best, _ = mean_field()
    split = pv.gaps(vae, x, num_samples=4000)
    exact = log_evidence(vae, x)
    # Each is a mean over 50 data and 4000 draws of a log weight whose sd is below 1.5.
    tolerance = 5 * 1.5 / (len(x) * 4000) ** 0.5
    assert split.approximation.mean() == pytest.approx(approximation_gap(vae), abs=tolerance)
    # KL(q || q*) of normals with the same precision as reference, latent by latent.
    q_sd = MeanFieldPosterior(vae.model.likelihood)(x).stddev[0].detach().numpy()
    kl = len(q_sd) * (scale**2 / 2 - 0.5 - np.log(scale))
    precision = torch.linalg.inv(vae.model.likelihood.posterior_terms()[1]).detach().numpy()
    kl += 0.5 * shift**2 * precision.sum()
    assert split.amortization.mean() == pytest.approx(kl, abs=2 * tolerance)
    np.testing.assert_allclose(split.log_likelihood, exact, atol=0.2)
    assert best.guide.posterior.encoder.forward.__func__ is Spoiling.forward


def test_the_best_of_the_family_is_found_from_afar():
    vae, x = mean_field(scale=5.0, shift=4.0)
    split = pv.gaps(vae, x, num_samples=4000)
    # 200,000 log weights of an sd below 1.5, and what the search falls short by.
    np.testing.assert_allclose(split.approximation.mean(), approximation_gap(vae), atol=0.02)
    assert (split.amortization > 10).all()


def test_gaps_say_which_guides_they_can_treat():
    vae, x = linear_vae()
    with pytest.raises(ValueError, match=r"the guide has no posterior.encoder"):
        pv.gaps(vae, x)
    vae, x = mean_field()
    with pytest.raises(ValueError, match="does not call the module passed as encoder="):
        pv.gaps(vae, x, encoder=nn.Linear(1, 1))


def test_annealing_and_its_reverse_bracket_the_evidence():
    vae, x = linear_vae()
    simulated, bounds = pv.bidirectional(
        vae, x, num_data=100, num_chains=16, num_temperatures=200, num_leapfrog=5
    )
    exact = log_evidence(vae, simulated)
    below, above = exact - bounds.lower, bounds.upper - exact
    for side in (below, above):
        assert side.mean() > -5 * side.std() / len(side) ** 0.5
        assert side.mean() < 0.1
    assert 0.4 < bounds.acceptance.mean() < 0.95
    # On data from elsewhere, there is the lower bound only.
    bounds = pv.ais(vae, x[:20], num_chains=16, num_temperatures=100)
    assert np.isnan(bounds.upper).all()
    np.testing.assert_allclose(bounds.lower, log_evidence(vae, x[:20]), atol=0.7)


def test_annealing_owes_nothing_to_the_guide():
    vae, x = linear_vae()
    poor = vae.replace(guide=Spoilt(vae.guide.posterior, 0.1, 3.0))
    one, other = (pv.ais(pair, x[:5], num_temperatures=20) for pair in (vae, poor))
    np.testing.assert_array_equal(one.lower, other.lower)


def test_annealing_begins_at_the_prior_and_ends_at_the_posterior():
    betas = schedule(10)
    assert betas[0] == 0
    assert betas[-1] == 1
    assert (betas.diff() > 0).all()


def test_sbc_passes_the_exact_posterior_and_covers_what_it_says():
    vae, _ = linear_vae()
    tree = pv.sbc(vae)
    assert (tree["uniformity/z"] > 1e-4).all()
    level = tree["coverage"].coords["level"].to_numpy()[:, None]
    # 1000 simulations, and ranks on a grid of 64.
    error = 5 * np.sqrt(level * (1 - level) / 1000) + 1 / 64
    assert (np.abs(tree["coverage/z"].to_numpy() - level) < error).all()


@pytest.mark.parametrize(("scale", "shift"), [(0.8, 0.0), (1.0, 0.2)])
def test_sbc_catches_a_spoilt_guide(scale, shift):
    vae, _ = linear_vae()
    spread = vae.guide.posterior(torch.zeros(1, 6, dtype=torch.float64)).stddev.min().item()
    # A shift of 0.2 posterior sds is at the limit; 0.2 of the prior's sd is not.
    assert shift == 0 or shift > 0.2 * spread
    broken, _ = spoilt(scale, shift)
    assert (pv.sbc(broken)["uniformity/z"] < 1e-4).any()


def test_ranks_that_are_uniform_pass_and_others_do_not():
    ranks = np.arange(6400) % 64
    assert uniformity(ranks, 63) == pytest.approx(1.0)
    assert uniformity(ranks // 2, 63) < 1e-10


def test_collapse_is_told_from_use():
    vae, x = linear_vae()
    used = pv.collapse(vae, x)
    assert used.active.all()
    assert not used.collapsed
    q = vae.guide.posterior(x)
    exact = 0.5 * (q.mean**2 + q.variance - 1 - q.variance.log()).mean(0).detach().numpy()
    # The moments are of 100 draws for each of 50 data, the KL's sd below 1 nat.
    np.testing.assert_allclose(used.kl, exact, atol=5 / (50 * 100) ** 0.5)
    deaf = pv.VAE(vae.model.prior, Deaf(), vae.guide.posterior)
    assert "the decoder ignores z" in pv.collapse(deaf, x).verdict
    prior = vae.replace(guide=lambda x: dist.Normal(torch.zeros(len(x), 3).double(), 1).to_event(1))
    idle = pv.collapse(prior, x)
    assert idle.collapsed
    assert "no latent depends on x" in idle.verdict
    assert np.abs(idle.kl).max() < 0.01


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
