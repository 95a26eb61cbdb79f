"""The decoder of the page computes E[x|z] of `vae.decode`, for each likelihood and network."""

from base64 import b64decode
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae import explorer, likelihoods
from pyro_vae.explorer import decoder as decoders
from pyro_vae.networks import MLP, WithContext
from tests.explorer.cases import (
    DECODERS,
    LATENTS,
    NETWORKS,
    NODE,
    OF_IMAGES,
    compared,
    programs,
    spread,
    vae_of,
)
from tests.support.catalogue import LIKELIHOODS

NAMES = [*LIKELIHOODS, *(f"network: {name}" for name in NETWORKS)]
NAMES += [f"images: {name}, {network}" for name in OF_IMAGES for network in DECODERS]
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    if NODE is None:
        pytest.skip("no node is on PATH to run the script of the page with")
    return compared(programs(), tmp_path_factory.mktemp("node"))


@pytest.mark.parametrize("name", NAMES)
def test_the_script_computes_the_mean(differences, name):
    assert differences[name] < TOLERANCE / 50  # float32 is far below the tolerance of float16


@pytest.mark.skipif(NODE is None, reason="no node is on PATH to run the script of the page with")
def test_a_wrong_weight_is_seen(monkeypatch, tmp_path):
    torch.manual_seed(0)
    vae = vae_of(likelihoods.Normal(MLP(LATENTS, [5], 4)))
    honest = decoders.packed
    monkeypatch.setattr(decoders, "packed", lambda array: honest(1.01 * array))
    assert compared({"mlp": vae}, tmp_path)["mlp"] > TOLERANCE


@pytest.mark.skipif(NODE is None, reason="no node is on PATH to run the script of the page with")
def test_a_large_decoder_is_stored_in_float16(monkeypatch, tmp_path):
    torch.manual_seed(0)
    vae = vae_of(likelihoods.Bernoulli(MLP(LATENTS, [40], 30)))
    monkeypatch.setattr(decoders, "FLOAT32_BYTES", 1000)
    assert decoders.exported(vae, torch.zeros(1, LATENTS))["weights"]["dtype"] == "float16"
    assert 0 < compared({"mlp": vae}, tmp_path)["mlp"] < TOLERANCE


def test_a_decoder_that_float16_would_change_is_refused(monkeypatch):
    torch.manual_seed(0)
    network = MLP(LATENTS, [40], 30)
    with torch.no_grad():
        network.layers[2].weight.mul_(1000)
        network.layers[0].weight.mul_(20)
    vae = vae_of(likelihoods.Normal(network))
    monkeypatch.setattr(decoders, "FLOAT32_BYTES", 1000)
    with pytest.raises(pv.PairError, match=r"changes E\[x\|z\] by .* at most 0\.001"):
        decoders.exported(vae, torch.randn(20, LATENTS))


def test_a_decoder_that_no_page_holds_is_refused(monkeypatch):
    monkeypatch.setattr(decoders, "MAX_BYTES", 100)
    monkeypatch.setattr(decoders, "FLOAT32_BYTES", 100)
    vae = vae_of(likelihoods.Bernoulli(MLP(LATENTS, [40], 30)))
    with pytest.raises(pv.PairError, match="1,390 weights; a page holds at most 50"):
        decoders.exported(vae, torch.zeros(1, LATENTS))


class Own(nn.Module):
    def forward(self, z):
        return torch.cat([z, z], -1)


class OwnLinear(nn.Linear):
    def forward(self, z):
        return 2 * super().forward(z)


class OwnNormal(likelihoods.Normal):
    def loc(self, outputs):
        return 2 * super().loc(outputs)


def hooked():
    layer = nn.Linear(LATENTS, 4)
    layer.register_forward_hook(lambda module, given, found: 2 * found)
    return layer


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: likelihoods.Normal(Own()), "cannot run a Own in the page; expected a chain"),
        (lambda: likelihoods.Normal(OwnLinear(3, 4)), "cannot run a OwnLinear"),
        (lambda: likelihoods.Normal(nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1))), "a Softmax"),
        (lambda: likelihoods.Normal(hooked()), "a Linear with hooks"),
        (lambda: OwnNormal(MLP(3, [4], 2)), "does not know E\\[x\\|z\\] of a OwnNormal"),
        (lambda: lambda z: likelihoods.Normal(MLP(3, [4], 2))(z), "E\\[x\\|z\\] of a function"),
        (lambda: likelihoods.StudentT(MLP(3, [4], 2), df=1.0), "a StudentT with df=1.0 has not"),
        (
            lambda: likelihoods.Normal(
                nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (2, 2, 2)), nn.Linear(2, 2))
            ),
            "cannot run Linear.* on an input of shape \\(2, 2, 2\\)",
        ),
        (
            lambda: likelihoods.Normal(
                nn.Sequential(
                    nn.Linear(3, 8),
                    nn.Unflatten(1, (2, 2, 2)),
                    nn.Upsample(scale_factor=2, mode="bilinear"),
                )
            ),
            "cannot run Upsample",
        ),
    ],
)
def test_what_the_page_would_compute_otherwise_is_refused(build, sentence):
    with pytest.raises(pv.PairError, match=sentence):
        decoders.exported(vae_of(build()), torch.zeros(1, LATENTS))


def test_the_prior_may_depend_on_the_condition():
    torch.manual_seed(0)
    y = torch.rand(40, 2)  # more conditions than a list holds
    vae = pv.ConditionalVAE(
        pv.guides.DiagonalNormal(MLP(2, [4], 2 * LATENTS)),
        likelihoods.Normal(WithContext(MLP(LATENTS + 2, [4], 5), LATENTS)),
        pv.guides.DiagonalNormal(WithContext(MLP(5 + 2, [4], 2 * LATENTS), 5)),
    )
    contents = explorer.Explorer(vae, (torch.randn(40, 5), y), num_samples=5).contents
    assert contents["geometry"] == "plane"
    assert contents["conditions"]["choices"] == contents["conditions"]["of"] == []


def ladder(decoders, likelihood, sizes):
    encoders = [MLP(5, [4], 4), *(MLP(4, [4], 4) for _ in decoders)]
    return pv.LadderVAE(
        pv.priors.StandardNormal(sizes[-1]), decoders, likelihood, encoders, sizes
    ).eval()


@pytest.mark.skipif(NODE is None, reason="no node is on PATH to run the script of the page with")
def test_a_ladder_is_decoded_at_the_means_of_its_layers(tmp_path):
    torch.manual_seed(0)
    vaes = {
        "two layers": ladder(
            [MLP(LATENTS, [4], 2 * 4, block="gated")],
            spread(likelihoods.Bernoulli(MLP(4, [4], 5))),
            [4, LATENTS],
        ),
        "three layers": ladder(
            [MLP(LATENTS, [4], 2 * 2), MLP(2, [], 2 * 6)],
            spread(likelihoods.Poisson(MLP(6, [4], 5))),
            [6, 2, LATENTS],
        ),
    }
    for vae in vaes.values():
        spread(vae.model.decoders)
    assert all(found < TOLERANCE / 50 for found in compared(vaes, tmp_path).values())


@pytest.mark.parametrize("sizes", [[LATENTS, 2], [2, 1, 4]], ids=str)
def test_the_map_of_a_ladder_has_the_top_latents(sizes):
    torch.manual_seed(0)
    decoders = [MLP(above, [4], 2 * size) for size, above in pairwise(sizes)][::-1]
    vae = ladder(decoders, likelihoods.Normal(MLP(sizes[0], [4], 5)), sizes)
    x = torch.randn(30, 5)
    contents = explorer.Explorer(vae, x, num_samples=10, refine=True).contents
    means = np.frombuffer(b64decode(contents["data"]["z"]["data"]), np.float32)
    top = vae.encode(x).mean.detach().numpy()
    np.testing.assert_allclose(means.reshape(30, -1), top, rtol=1e-5)
    use = pv.collapse(vae, x, num_samples=20)
    kl = [latent["kl"] for latent in contents["latents"]]
    np.testing.assert_allclose(kl, use.kl[: sizes[-1]])
    draws = np.frombuffer(b64decode(contents["clouds"]["refined"]["data"]), np.float16)
    assert draws.size == 30 * 60 * sizes[-1]
    assert f"z is z{len(sizes)}, the top layer" in contents["notes"][2]


def test_other_models_are_refused_by_a_sentence():
    with pytest.raises(
        pv.ArgumentError, match="vae must be a VAE, a ConditionalVAE or a LadderVAE"
    ):
        explorer.Explorer(pv.Pair(print, print), torch.zeros(3, 2))
