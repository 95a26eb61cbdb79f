"""A refined posterior belongs to the model and data that it was computed for."""

import copy
import pickle

import numpy as np
import pytest
import torch

import pyro_vae as pv
from tests.support.linear_gaussian import MeanFieldPosterior, linear_vae

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda posterior: pickle.loads(pickle.dumps(posterior)),
}
SHAPE = 3, 6, 3  # samples, data and latents


@pytest.fixture
def refined():
    torch.manual_seed(1)
    vae, x = linear_vae(MeanFieldPosterior)
    x = x[:6].clone()
    return vae, x, pv.refine(vae, x, num_samples=60, num_rounds=1)


@torch.no_grad()
def train(vae, x):
    vae.model.likelihood.weight.mul_(1.2)


def change(vae, x):
    x[4] += 1.0


USES = {
    "sample": lambda posterior: posterior.sample(5, num_candidates=30),
    "log_prob": lambda posterior: posterior.log_prob({"z": torch.zeros(SHAPE)}),
}


@pytest.mark.parametrize("how", [train, change])
@pytest.mark.parametrize("use", USES)
def test_a_pair_or_data_that_changed_are_refused(refined, how, use):
    vae, x, posterior = refined
    USES[use](posterior)
    how(vae, x)
    with pytest.raises(pv.PairError, match=r"another model or other data: log p\(x, z\) of datum"):
        USES[use](posterior)


def test_a_posterior_saved_after_training_is_not_that_of_the_trained_model(refined, tmp_path):
    vae, x, posterior = refined
    before = copy.deepcopy(vae)
    train(vae, x)
    posterior.save(tmp_path / "refined")
    with pytest.raises(pv.CheckpointError, match="another model"):
        pv.RefinedPosterior.load(tmp_path / "refined", vae, x)
    loaded = pv.RefinedPosterior.load(tmp_path / "refined", before, x)
    np.testing.assert_array_equal(loaded.log_likelihood, posterior.log_likelihood)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_the_same_samples(refined, how):
    posterior = refined[2]
    copied = COPIES[how](posterior)
    assert torch.equal(copied.sample(5)["z"], posterior.sample(5)["z"])


@pytest.mark.parametrize(
    "latents",
    [
        {},
        None,
        torch.zeros(SHAPE),
        {"y": torch.zeros(SHAPE)},
        {"z": torch.zeros(SHAPE), "w": torch.zeros(SHAPE)},
        {"z": torch.zeros(6, 3)},
        {"z": torch.zeros(3, 1, 3)},
        {"z": torch.zeros(3, 6, 1)},
        {"z": torch.zeros(3, 6)},
        {"z": [1.0]},
    ],
)
def test_latents_of_other_names_or_shapes_are_refused(refined, latents):
    with pytest.raises(pv.PairError, match="expected"):
        refined[2].log_prob(latents)


@pytest.mark.parametrize("to", [torch.Tensor.numpy, torch.Tensor.float])
def test_latents_may_be_arrays_or_of_another_dtype(refined, to):
    posterior = refined[2]
    z = posterior.sample(3)["z"].float()
    expected = posterior.log_prob({"z": z.double()})
    torch.testing.assert_close(posterior.log_prob({"z": to(z)}), expected, rtol=1e-6, atol=1e-6)
