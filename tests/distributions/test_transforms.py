"""The maps from R^dim to supports in float32, against float64 and 60 digits."""

import pytest
import torch
from torch.distributions import constraints

from pyro_vae import guides, priors
from pyro_vae.distributions.transforms import StickBreaking, biject_to

mp = pytest.importorskip("mpmath")


def shares_of(states):
    """Return the shares of stick-breaking in 60 digits, slowly."""
    left, shares = mp.mpf(1), []
    for i, state in enumerate(states):
        part = 1 / (1 + mp.exp(mp.log(len(states) - i) - mp.mpf(state)))
        shares.append(left * part)
        left *= 1 - part
    return [*shares, left]


@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0, 30.0, 40.0])
def test_stick_breaking_in_float32_has_the_shares_and_states_of_60_digits(scale):
    states = scale * torch.linspace(-1, 1, 12).reshape(4, 3)[:, [2, 0, 1]]
    with mp.workdps(60):
        right = [[float(share) for share in shares_of(row)] for row in states.tolist()]
    right = torch.tensor(right, dtype=torch.float64).clamp(min=torch.finfo(torch.float32).tiny)
    shares = StickBreaking()(states)
    torch.testing.assert_close(shares.double(), right, rtol=1e-6, atol=0)
    rare = right.min(-1).values > 1e-37
    again = StickBreaking()._inverse(shares)
    torch.testing.assert_close(again[rare], states[rare], rtol=1e-5, atol=1e-5)


def test_states_in_the_corners_have_finite_densities_and_gradients():
    states = torch.tensor([[200.0, -200.0], [-300.0, 90.0], [0.0, 1e4]], requires_grad=True)
    transform = StickBreaking()
    shares = transform(states)
    log_jacobian = transform.log_abs_det_jacobian(states, shares)
    (gradient,) = torch.autograd.grad(log_jacobian.sum() + transform._inverse(shares).sum(), states)
    assert shares.min() > 0
    assert log_jacobian.isfinite().all()
    assert gradient.isfinite().all()


def test_a_sample_of_a_logistic_normal_has_its_density_without_the_cached_state():
    raw = torch.tensor(1 - 1e-6).expm1().log().item()  # scale 1
    q = guides.LogisticNormal(lambda x: x)(torch.tensor([[9.0, -9.0, raw, raw]]).expand(500, -1))
    z = q.sample()
    torch.testing.assert_close(q.log_prob(z.clone()), q.log_prob(z), rtol=1e-4, atol=1e-3)
    assert priors.LogisticNormal(3)().log_prob(z).isfinite().all()


def test_the_map_to_several_simplices_breaks_sticks_accurately():
    several = biject_to(constraints.independent(constraints.simplex, 1))
    states = torch.tensor([[[30.0, -30.0]], [[-5.0, 25.0]]])
    torch.testing.assert_close(several.inv(several(states)), states, rtol=1e-5, atol=1e-5)
