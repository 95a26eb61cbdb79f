"""Scores of a pair in 16 bits are refused by all public functions, and dtypes that differ named."""

import pytest
import torch

import pyro_vae as pv
from pyro_vae.networks import MLP

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def vae(dtype):
    likelihood = pv.likelihoods.Normal(MLP(1, [], 3))
    pair = pv.VAE(pv.priors.StandardNormal(1), likelihood, pv.guides.DiagonalNormal(MLP(3, [], 2)))
    return pair.to(dtype)


SCORES = {
    "evaluate": lambda pair, x: pv.evaluate(pair, x, num_samples=5),
    "refined": lambda pair, x: pv.evaluate(pair, x, num_samples=5, proposal="refined"),
    "refine": lambda pair, x: pv.refine(pair, x, num_samples=5),
    "gaps": lambda pair, x: pv.gaps(pair, x, num_steps=1, num_samples=5),
    "ais": lambda pair, x: pv.ais(pair, x, num_temperatures=2),
    "sbc": lambda pair, x: pv.sbc(pair, x, num_simulations=5),
    "collapse": lambda pair, x: pv.collapse(pair, x, num_samples=5),
    "diagnose": lambda pair, x: pv.diagnose(pair, x, num_samples=5, num_simulations=5),
    "from_pyro_svi": lambda pair, x: pv.from_pyro_svi(
        pair.model, pair.guide, model_args=(x,), num_samples=5
    ),
    "resampled": lambda pair, x: pv.from_pyro_svi(
        pair.model, pair.guide, model_args=(x,), num_samples=5, posterior="resampled"
    ),
    "validation": lambda pair, x: pv.fit(pair, x, validation=x, epochs=1, progress=False),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SCORES)
def test_log_densities_of_16_bits_are_refused(name, dtype):
    with pytest.raises(pv.PairError, match=r"rounded to 2 or 3 digits.*\.float\(\)"):
        SCORES[name](vae(dtype), X.to(dtype))


def test_autocast_is_named():
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(pv.PairError, match=r"3 digits.*outside of torch\.autocast"),
    ):
        SCORES["evaluate"](vae(torch.float32), X)


def test_data_of_16_bits_are_scored_by_a_pair_in_float32():
    exact = pv.evaluate(vae(torch.float32), X.half().float(), num_samples=5)
    with pytest.warns(pv.data.DataWarning, match="x is converted"):
        assert pv.evaluate(vae(torch.float32), X.half(), num_samples=5).num_data == exact.num_data


@pytest.mark.parametrize("of_pair", [torch.float32, torch.float64])
@pytest.mark.parametrize("of_x", [torch.float32, torch.float64, torch.float16])
def test_another_dtype_of_the_arguments_is_named(of_pair, of_x):
    pair, x = vae(of_pair), X.to(of_x)
    sample = lambda: pv.from_pyro_svi(  # noqa: E731
        pair.model, pair.guide, model_args=(x,), num_samples=2
    )
    if of_pair == of_x:
        sample()
        return
    kind = str(of_x).removeprefix("torch.")
    with pytest.raises(pv.PairError, match=f"x is {kind}, but other tensors .* Convert x"):
        sample()


def test_no_data_are_named():
    pair = vae(torch.float32)
    with pytest.raises(pv.PairError, match=r"at least one datum, got shape \(0, 3\)"):
        pv.from_pyro_svi(pair.model, pair.guide, model_args=(X[:0],), num_samples=2)
