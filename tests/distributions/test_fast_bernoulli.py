"""`FastBernoulli` sums log densities by products and equals Pyro's Bernoulli."""

import pytest
import torch

from pyro_vae.distributions.bernoulli import FastBernoulli


@pytest.mark.parametrize("shape", [(2, 3, 784), (4, 1, 28, 28), (3, 7), (5, 113), (2, 3, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_the_bits_of_an_event_have_the_sum_of_their_log_densities(shape, dtype, tolerance):
    logits = (20 * torch.randn(shape, dtype=dtype)).requires_grad_()
    value = (torch.rand(shape[1:]) < 0.5).to(dtype)
    bits = FastBernoulli(logits=logits, validate_args=False)
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
        return FastBernoulli(logits=logits, validate_args=False).to_event(1).log_prob(value)

    assert torch.autograd.gradcheck(log_prob, logits)
    assert torch.autograd.gradgradcheck(log_prob, logits)
    zero = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_prob(zero).sum(), zero)
    assert torch.equal(slope[0], value - 0.5)


def test_bits_that_are_certain():
    logits = torch.tensor([[torch.inf, -torch.inf], [-torch.inf, 100.0], [torch.nan, 0.0]])
    event = FastBernoulli(logits=logits, validate_args=False).to_event(1)
    right, wrong, unknown = event.log_prob(torch.tensor([1.0, 0.0]))
    assert (right, wrong) == (0, -torch.inf)
    assert unknown.isnan()
