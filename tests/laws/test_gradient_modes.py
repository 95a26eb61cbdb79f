"""Numbers do not depend on the gradient mode or the default dtype; data are constants."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import pyro_vae as pv

X = (torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) < 0.4).float()
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
SCORES = {
    "evaluate": lambda vae: pv.evaluate(vae, X, num_samples=20).log_likelihood,
    "refine": lambda vae: pv.refine(vae, X, num_rounds=1, num_samples=20).log_likelihood,
    "gaps": lambda vae: pv.gaps(vae, X, num_steps=3, num_samples=20).best_elbo,
    "ais": lambda vae: pv.ais(vae, X, num_chains=2, num_temperatures=5).lower,
    "mcmc_draws": lambda vae: (
        pv.mcmc_draws(vae, X[:1], num_samples=5, warmup_steps=5).posterior["z"].values
    ),
}


@functools.cache
def usual(score):
    return SCORES[score](vae())


def vae():
    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
    )


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("mode", MODES)
def test_numbers_are_those_of_the_usual_mode(mode, score):
    expected, pair = usual(score), vae()
    with MODES[mode]():
        found = SCORES[score](pair)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (mode == "inference_mode")
    np.testing.assert_array_equal(found, expected)


# Pyro's sampler draws momenta in the default dtype.
@pytest.mark.parametrize("score", [name for name in SCORES if name != "mcmc_draws"])
def test_numbers_of_float32_do_not_depend_on_the_default_dtype(score):
    expected, pair = usual(score), vae()
    torch.set_default_dtype(torch.float64)
    try:
        found = SCORES[score](pair)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_training_without_gradients_is_refused(mode):
    pair = vae()
    before = nn.utils.parameters_to_vector(pair.parameters()).clone()
    with MODES[mode](), pytest.raises(ValueError, match=r"fit outside of torch.no_grad\(\)"):
        pv.fit(pair, X, epochs=1)
    assert torch.equal(nn.utils.parameters_to_vector(pair.parameters()), before)


DATA = {
    "tensor": lambda x: x,
    "context": lambda x: (x, x),
    "Dataset": lambda x: pv.data.Dataset(x),
    "DataLoader": lambda x: DataLoader(x, batch_size=2),
    "DataLoader of a leaf": lambda x: DataLoader(X.clone().requires_grad_(), batch_size=2),
}


@pytest.mark.parametrize("kind", DATA)
def test_data_are_constants(kind):
    source = nn.Linear(5, 5)
    data, expected = DATA[kind](source(X)), DATA[kind](source(X).detach())
    if kind == "DataLoader of a leaf":
        expected = DataLoader(X, batch_size=2)
    found = [pv.fit(normal(kind), x, epochs=2, batch_size=2).history for x in (data, expected)]
    for one, other in zip(*found, strict=True):
        assert one["train_elbo"] == other["train_elbo"]
    assert source.weight.grad is None
    if kind == "DataLoader of a leaf":
        assert data.dataset.grad is None


def normal(kind):
    decoder, encoder = pv.networks.MLP(2, [4], 5), pv.networks.MLP(5, [4], 4)
    parts = pv.priors.StandardNormal(2), pv.likelihoods.Normal(decoder)
    torch.manual_seed(0)
    vae = pv.VAE(*parts, pv.guides.DiagonalNormal(encoder))
    for parameter in vae.parameters():
        nn.init.constant_(parameter, 0.1)
    if kind != "context":
        return vae
    return pv.Pair(lambda x, y: vae.model(y), lambda x, y: vae.guide(x))
