"""Networks: images of any size, initial weights, errors."""

import pytest
import torch

from pyro_vae import networks

SIZES = [(28, 28), (28, 20), (7, 5), (1, 9), (33, 64)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [[8], [4, 8, 8]])
def test_convolutions_take_and_make_images_of_any_size(size, levels):
    encoder = networks.ConvEncoder((3, *size), levels, 10)
    decoder = networks.ConvDecoder(4, levels[::-1], (2, *size))
    images = torch.rand(2, 5, 3, *size)
    assert encoder(images).shape == (2, 5, 10)
    assert decoder(torch.randn(2, 5, 4)).shape == (2, 5, 2, *size)


@pytest.mark.parametrize("size", SIZES)
def test_every_pixel_reaches_the_code_and_is_reached_by_it(size):
    encoder = networks.ConvEncoder((1, *size), [4, 4], 3)
    images = torch.rand(1, 1, *size, requires_grad=True)
    (gradient,) = torch.autograd.grad(encoder(images).square().sum(), images)
    assert (gradient != 0).all()
    decoder = networks.ConvDecoder(3, [4, 4], (1, *size))
    one, other = decoder(torch.randn(2, 3))
    assert (one != other).all()


@pytest.mark.parametrize(
    "network",
    [
        lambda: networks.ConvEncoder((1, 28, 28), [16, 32, 32], 40),
        lambda: networks.ConvDecoder(20, [32, 32, 16], (1, 28, 28)),
        lambda: networks.MLP((1, 28, 28), [500, 500], 40),
    ],
    ids=["ConvEncoder", "ConvDecoder", "MLP"],
)
def test_signals_and_gradients_keep_their_size_through_the_layers(network):
    network = network()  # built here, where the seed is set
    values = torch.randn(64, *network.in_shape, requires_grad=True)
    out = network(values)
    # A decoder widens, where Glorot weights average over fan-in and fan-out: it starts near 0.
    assert 0.03 < out.std() < 4
    (gradient,) = torch.autograd.grad(out, values, torch.randn_like(out))
    assert 0.01 < gradient.std() * (values[0].numel() / out[0].numel()) ** 0.5 < 10


@pytest.mark.parametrize(
    "network",
    [networks.ConvEncoder((1, 9, 9), [4], 3), networks.ConvDecoder(3, [4], (1, 9, 9))],
    ids=lambda network: type(network).__name__,
)
def test_a_datums_output_is_its_own_in_training_as_in_evaluation(network):
    values = torch.randn(6, *network.in_shape)
    together = network.train()(values)
    torch.testing.assert_close(network.eval()(values), together)
    torch.testing.assert_close(network(values[3]), together[3])


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match=r"\(channels, height, width\), got \(28, 28\)"):
        networks.ConvEncoder((28, 28), [4], 3)
    with pytest.raises(ValueError, match=r"\(channels, height, width\), got 784"):
        networks.ConvDecoder(3, [4], 784)
    with pytest.raises(ValueError, match="at least 1"):
        networks.ConvEncoder((1, 28, 28), [], 3)
    with pytest.raises(ValueError, match=r"activation must be .*'tanh', got 'swish'"):
        networks.ConvEncoder((1, 28, 28), [4], 3, activation="swish")
