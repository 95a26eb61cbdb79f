"""Likelihoods of counts: shares of a total, expansion."""

import numpy as np
import pytest
import scipy.stats as st
import torch
from torch.nn.functional import softplus

from pyro_vae import likelihoods
from pyro_vae.networks import MLP


@pytest.mark.parametrize("r", [0.7, "learned", "entrywise", "decoder"])
def test_counts_given_their_total_are_shares_of_it(r):
    decoder = MLP(2, [], 6 if r == "decoder" else 3).double()
    likelihood = likelihoods.NegativeBinomial(decoder, r, library_size=100.0).double()
    z = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[0, 0, 0], [5, 0, 2], [100, 3, 0], [1, 1, 1]], dtype=torch.float64)
    given = decoder(z).detach()
    shares = given[:, :3].softmax(-1).numpy()
    means = np.maximum(x.numpy().sum(-1, keepdims=True), 1) * shares
    if r == "decoder":
        r = (softplus(given[:, 3:]) + 1e-3).numpy()
    elif r in ("learned", "entrywise"):
        r = 1 + 1e-3
    p = likelihood(z)
    expected = st.nbinom.logpmf(x.numpy(), r, r / (r + means)).sum(-1)
    np.testing.assert_allclose(p.log_prob(x).detach().numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(p.mean.detach().numpy(), 100 * shares, rtol=1e-9)
    assert p.expand((7, 4)).log_prob(x).shape == (7, 4)


def test_zero_inflated_counts_can_be_expanded_after_they_were_drawn():
    p = likelihoods.ZeroInflatedNegativeBinomial(MLP(2, [], 6))(torch.zeros(4, 2))
    x = p.sample()
    torch.testing.assert_close(p.expand((5, 4)).log_prob(x), p.log_prob(x).expand(5, 4))
