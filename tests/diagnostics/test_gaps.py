"""Inference gaps of mean-field guides equal their closed form."""

import numpy as np
import pytest
import torch
from torch import nn

import pyro_vae as pv
from tests.support.linear_gaussian import MeanFieldPosterior, linear_vae
from tests.support.spoilt import Spoiling, approximation_gap, log_evidence, mean_field


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
