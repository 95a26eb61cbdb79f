"""Matrix products by oneDNN, and sums of log densities by products: the same numbers."""

import functools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import pyro_vae as pv
from pyro_vae import lowering, products, svi
from pyro_vae.distributions import Bits


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(products, "LARGE_PRODUCT", 1000)
    monkeypatch.setattr(products, "has_half_speed_blas", lambda: True)


def test_products_are_torchs(fast):
    a, b, bias = torch.randn(30, 50), torch.randn(50, 20), torch.randn(20)
    for left in (a, a.t().contiguous().t()):
        for right in (b, b.t().contiguous().t()):
            torch.testing.assert_close(products.product(left, right), a @ b)
            torch.testing.assert_close(products.product(left, right, bias), a @ b + bias)
    assert products.product(a.double(), b.double()) is NotImplemented
    assert products.product(a[:1], b[:, :1]) is NotImplemented


def test_nothing_changes_where_torchs_products_use_the_processor(monkeypatch):
    monkeypatch.setattr(products, "has_half_speed_blas", lambda: False)
    assert products.product(torch.ones(200, 200), torch.ones(200, 200)) is NotImplemented


def test_layers_are_fast_and_torchs(fast, monkeypatch):
    taken = []
    real = products.product
    monkeypatch.setattr(products, "product", lambda *args: taken.append(1) or real(*args))
    x, layer = torch.randn(3, 5, 40), torch.nn.Linear(40, 30)
    expected = layer(x)
    with products.FastLayers() as layers:
        assert torch.equal(layer(x), expected)  # too small, where gradients are asked for
        assert not taken
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected)
            torch.testing.assert_close(F.linear(x[0, 0], layer.weight), x[0, 0] @ layer.weight.T)
    assert len(taken) == 1
    assert layers.count == 0


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_fast_layers_are_torchs(fast, monkeypatch, bias):
    monkeypatch.setattr(products, "LARGE_LAYER", 1000)
    layer = torch.nn.Linear(40, 30, bias=bias)
    x = torch.randn(3, 5, 40, requires_grad=True)
    given, weight = [x, *layer.parameters()], torch.randn(3, 5, 30)

    def gradients(create_graph):
        return torch.autograd.grad(
            (weight * layer(x).tanh()).sum(), given, create_graph=create_graph
        )

    def penalty():
        return torch.autograd.grad(sum((g**2).sum() for g in gradients(True)), given)

    expected = gradients(False), penalty()
    with products.FastLayers() as layers:
        torch.testing.assert_close(gradients(False), expected[0])
        torch.testing.assert_close(penalty(), expected[1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.vmap(layer)(x), layer(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype is torch.bfloat16
    assert layers.count == 3


def test_eager_steps_take_fast_layers_where_these_are_large(fast, monkeypatch):
    def train(num_data):
        torch.manual_seed(0)
        vae = pv.VAE(
            pv.priors.StandardNormal(2),
            pv.likelihoods.Bernoulli(pv.networks.MLP(2, [20], 30)),
            pv.guides.DiagonalNormal(pv.networks.MLP(30, [20], 4)),
        )
        optim = functools.partial(torch.optim.Adam, lr=0.01)
        steps = pv.SVI(vae.model, vae.guide, optim, compile=False)
        x = (torch.rand(num_data, 30) < 0.5).float()
        return [steps.step(x) for _ in range(3)], steps._layers.count

    monkeypatch.setattr(products, "LARGE_LAYER", 50 * 600)
    losses, count = train(50)
    assert count == 6  # of 12: those between 30 pixels and 20 hidden units
    assert train(49)[1] == 0
    monkeypatch.setattr(svi, "has_half_speed_blas", lambda: False)
    plain, count = train(50)
    assert count == 0
    np.testing.assert_allclose(losses, plain, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 784), (4, 1, 28, 28), (3, 7), (5, 113), (2, 3, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_the_bits_of_an_event_have_the_sum_of_their_log_densities(shape, dtype, tolerance):
    logits = (20 * torch.randn(shape, dtype=dtype)).requires_grad_()
    value = (torch.rand(shape[1:]) < 0.5).to(dtype)
    bits = Bits(logits=logits, validate_args=False)
    event = bits.to_event(len(shape) - 1)
    expected, actual = bits.log_prob(value).double().flatten(1).sum(1), event.log_prob(value)
    assert actual.shape == event.batch_shape == (shape[0],)
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(actual.double(), expected, **close)
    weights = torch.randn(shape[0], dtype=dtype)
    (one,) = torch.autograd.grad((weights * expected).sum(), logits)
    (other,) = torch.autograd.grad((weights * actual).sum(), logits)
    torch.testing.assert_close(other, one, **close)
    wider = event.expand((2, shape[0])).log_prob(value)
    torch.testing.assert_close(wider, actual.expand(2, -1))


def test_the_bits_of_an_event_have_second_derivatives_and_a_slope_at_zero():
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    value = torch.tensor([0.0, 1, 1, 0, 1], dtype=torch.float64)

    def log_prob(logits):
        return Bits(logits=logits, validate_args=False).to_event(1).log_prob(value)

    assert torch.autograd.gradcheck(log_prob, logits)
    assert torch.autograd.gradgradcheck(log_prob, logits)
    zero = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_prob(zero).sum(), zero)
    assert torch.equal(slope[0], value - 0.5)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float64, 2**-52), (torch.float32, 2**-23)])
def test_log_sigmoid_by_log_loses_nothing(dtype, eps):
    """Not even far out, where 1 + exp(-|x|) rounds to 1; against twice the precision."""
    x = torch.cat([torch.linspace(-200, 200, 4001), torch.tensor([0.0, 1e-8, -1e-8])]).to(dtype)
    actual, _ = lowering._log_sigmoid(x)
    u = np.exp(-np.abs(x.numpy().astype(np.longdouble)))
    expected = np.minimum(x.numpy().astype(np.longdouble), 0) - np.log1p(u)
    error = np.abs(actual.numpy().astype(np.longdouble) - expected)
    tiny = np.finfo(actual.numpy().dtype).tiny  # below, exp flushes to zero
    assert (error <= 4 * eps * np.abs(expected) + tiny).all()
    certain, _ = lowering._log_sigmoid(torch.tensor([torch.inf, -torch.inf, torch.nan]))
    assert certain[:2].tolist() == [0, -torch.inf]
    assert certain[2].isnan()


def test_bits_that_are_certain():
    logits = torch.tensor([[torch.inf, -torch.inf], [-torch.inf, 100.0], [torch.nan, 0.0]])
    event = Bits(logits=logits, validate_args=False).to_event(1)
    right, wrong, unknown = event.log_prob(torch.tensor([1.0, 0.0]))
    assert (right, wrong) == (0, -torch.inf)
    assert unknown.isnan()
