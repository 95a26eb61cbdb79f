"""Student t distributions with many samples, and Pyro's."""

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.refinement.student_t import StudentT


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("dim", [1, 2, 10, 50])
def test_samples_and_densities_are_those_of_pyro(dim, components, dtype):
    torch.manual_seed(dim)
    noise = 0.3 * torch.randn(4, components, dim, dim).tril(-1) / dim**0.5
    scale_tril = (noise + torch.eye(dim) * torch.logspace(-2, 2, dim)).to(dtype)
    settings = {"df": torch.tensor(7.0, dtype=dtype).expand(4, components)}
    settings |= {"loc": torch.randn(4, components, dim).to(dtype), "scale_tril": scale_tril}
    ours, twin = StudentT(**settings), dist.MultivariateStudentT(**settings)
    samples = []
    for distribution in (ours, twin):
        torch.manual_seed(1)
        samples.append(distribution.sample((100,)))
    torch.testing.assert_close(*samples, rtol=1e-4, atol=1e-4)
    values = samples[1]
    torch.testing.assert_close(ours.log_prob(values), twin.log_prob(values), rtol=1e-4, atol=1e-4)
    one = values[:, :, :1]  # broadcast over the components
    torch.testing.assert_close(ours.log_prob(one), twin.log_prob(one), rtol=1e-4, atol=1e-4)
