"""Blocks and norms of networks: against their formulas, and in training and evaluation."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, conv2d, interpolate, layer_norm, linear, silu

import pyro_vae as pv
from pyro_vae import networks


def weights(network):
    """Return weight and bias of each linear layer and convolution, in the order of the layers."""
    kinds = nn.Linear | nn.Conv2d
    return [(m.weight, m.bias) for m in network.modules() if isinstance(m, kinds)]


def with_biases(network):
    """Return a network with random biases. They start at zero, which would hide them."""
    with torch.no_grad():
        for _, bias in weights(network):
            bias.normal_(std=0.5)
    return network


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def gate(values, dim=-1):
    h, g = values.chunk(2, dim)
    return h * torch.sigmoid(g)


def test_gated_layers_equal_their_formula():
    network = with_biases(networks.MLP(4, [6, 5], 3, block="gated"))
    first, second, last = weights(network)
    x = torch.randn(7, 4)
    expected = linear(gate(linear(gate(linear(x, *first)), *second)), *last)
    torch.testing.assert_close(network(x), expected)
    assert [w.shape[0] for w, _ in (first, second)] == [2 * 6, 2 * 5]


@pytest.mark.parametrize("norm", [None, "layer"])
def test_residual_layers_equal_their_formula(norm):
    network = with_biases(
        networks.MLP(4, [6, 6], 3, activation="silu", block="residual", norm=norm)
    )
    widening, *inner, last = weights(network)
    assert len(inner) == 4

    def activated(x):
        return silu(x if norm is None else layer_norm(x, (6,)))

    x = torch.randn(7, 4)
    h = linear(x, *widening)
    for one, other in (inner[:2], inner[2:]):
        h = (h + linear(activated(linear(activated(h), *one)), *other)) / math.sqrt(2)
    torch.testing.assert_close(network(x), linear(silu(h), *last))


@pytest.mark.parametrize("block", ["dense", "gated"])
def test_norms_are_taken_of_the_features_of_a_layer(block):
    x = torch.randn(7, 4)
    for norm in networks.NORMS:
        network = with_biases(networks.MLP(4, [6], 3, block=block, norm=norm))
        first, last = weights(network)

        def normed(h, norm=norm):
            if norm == "layer":
                return layer_norm(h, (6,))
            return batch_norm(h, None, None, training=True)

        h = linear(x, *first)
        features = normed(h).tanh() if block == "dense" else normed(gate(h))
        torch.testing.assert_close(network(x), linear(features, *last), atol=1e-5, rtol=1e-5)


def test_gated_convolutions_equal_their_formula():
    encoder = with_biases(networks.ConvEncoder((1, 8, 8), [3], 2, block="gated", stem=2))
    x = torch.randn(5, 1, 8, 8)
    stem, *inside, level, after, head = weights(encoder)
    h = gate(conv2d(x, *stem, padding=1), 1)
    for layer in inside:
        h = gate(conv2d(h, *layer, padding=1), 1)
    h = gate(conv2d(gate(conv2d(h, *level, stride=2, padding=1), 1), *after, padding=1), 1)
    torch.testing.assert_close(encoder(x), linear(h.flatten(1), *head))


def test_a_stem_of_a_decoder_works_at_the_size_of_the_images():
    decoder = with_biases(networks.ConvDecoder(2, [3], (1, 8, 8), block="gated", stem=4))
    z = torch.randn(5, 2)
    first, inside, widening, outside, last = weights(decoder)
    h = linear(z, *first).unflatten(1, (3, 4, 4))
    h = interpolate(gate(conv2d(h, *inside, padding=1), 1), size=(8, 8))
    h = gate(conv2d(conv2d(h, *widening, padding=1), *outside, padding=1), 1)
    torch.testing.assert_close(decoder(z), conv2d(h, *last, padding=1))


def test_weights_of_networks_without_new_arguments_keep_their_names():
    assert [*networks.MLP(2, [3], 1).state_dict()] == [
        f"layers.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")
    ]
    encoder = networks.ConvEncoder((1, 4, 4), [2], 1)
    decoder = networks.ConvDecoder(1, [2], (1, 4, 4))
    for network, layers in (
        (encoder, ["0", "1.layers.1", "1.layers.3", "4"]),
        (decoder, ["0", "2.layers.1", "2.layers.3", "5"]),
    ):
        names = [f"layers.{layer}.{name}" for layer in layers for name in ("weight", "bias")]
        assert [*network.state_dict()] == names


@pytest.mark.parametrize("block", ["dense", "gated", "residual"])
@pytest.mark.parametrize("hidden", [[300, 300], [400]])
def test_signals_keep_their_size(block, hidden):
    network = networks.MLP(300, hidden, 300, block=block)
    out = network(torch.randn(200, 300))
    assert 0.2 < out.std() < 2


def test_batch_norm_trains_on_batches_and_scores_by_running_averages():
    mlp = {"block": "residual", "norm": "batch"}
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(networks.MLP(2, [8], 6, **mlp)),
        pv.guides.DiagonalNormal(networks.MLP(6, [8], 4, **mlp)),
    )
    x = (torch.rand(40, 6) < 0.4).float()
    start = copy.deepcopy(vae.state_dict())
    pv.fit(vae, x, validation=x, epochs=5, batch_size=10, compile=False, progress=False)
    trained = copy.deepcopy(vae.state_dict())
    counts = [value for name, value in trained.items() if name.endswith("num_batches_tracked")]
    assert len(counts) == 4
    assert all(0 < count <= 20 for count in counts)  # up to the best epoch
    moved = [name for name in trained if name.endswith("running_mean")]
    assert all(not torch.equal(trained[name], start[name]) for name in moved)
    scores = [pv.evaluate(vae, rows, num_samples=20).elbo for rows in (x, x[:8])]
    assert all(torch.equal(value, trained[name]) for name, value in vae.state_dict().items())
    # A score does not depend on the other data, as it would with the statistics of a batch.
    with torch.no_grad():
        vae.eval()
        torch.testing.assert_close(vae.encode(x).mean[:3], vae.encode(x[:3]).mean)
        vae.train()
        assert not torch.allclose(vae.encode(x).mean[:3], vae.encode(x[:3]).mean)
    assert all(len(elbo) == len(rows) for elbo, rows in zip(scores, (x, x[:8]), strict=True))


def test_unknown_blocks_and_norms_are_refused():
    with pytest.raises(pv.ArgumentError, match=r"block must be 'dense', 'gated' or 'residual'"):
        networks.MLP(2, [3], 1, block="conv")
    with pytest.raises(pv.ArgumentError, match=r"norm must be .*'batch'.*'layer'"):
        networks.MLP(2, [3], 1, norm="instance")
    with pytest.raises(pv.ArgumentError, match=r"block must be 'gated' or 'residual'"):
        networks.ConvEncoder((1, 8, 8), [3], 2, block="dense")
