"""Simulation-based calibration passes exact posteriors and catches mutants."""

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.diagnostics.sbc import uniformity
from tests.support.linear_gaussian import linear_vae
from tests.support.spoilt import spoilt


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
