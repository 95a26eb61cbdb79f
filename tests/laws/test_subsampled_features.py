"""Under subsampled features, an objective estimates a bound of log p(x), or it is refused.

z_n ~ N(0, 1), u_nj ~ N(0, 1), x_nj ~ N(w_j z_n + u_nj, 1), for d of D features a step.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO

import pyro_vae as pv

N, D = 3, 6
W = torch.linspace(-2, 2, D).double()
GENERATOR = torch.Generator().manual_seed(1)
X = W * torch.randn(N, 1, generator=GENERATOR).double()
X = X + 2**0.5 * torch.randn(N, D, generator=GENERATOR).double()
EXACT = dist.MultivariateNormal(
    torch.zeros(D).double(), 2 * torch.eye(D).double() + torch.outer(W, W)
).log_prob(X)
VARIANCE = 1 / (1 + (W.square() / 2).sum())


class Model(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def features(self):
        return pyro.plate("features", D, subsample_size=self.size, dim=-1)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0))
            with self.features() as i:
                u = pyro.sample("u", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample("x", dist.Normal(W[i] * z + u, 1.0), obs=x[:, i])


class Guide(Model):
    def forward(self, x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal((x @ W)[:, None] / 2 * VARIANCE, 2 * VARIANCE**0.5))
            with self.features() as i:
                pyro.sample("u", dist.Normal((x[:, i] - W[i] * z) / 2, 1.0))


OBJECTIVES = {
    "ELBO": Trace_ELBO,
    "ELBO of many": lambda: Trace_ELBO(5, vectorize_particles=True),
    "sticking the landing": lambda: pv.objectives.StickingTheLanding(5),
    "free bits": lambda: pv.objectives.FreeBits(0.2, num_particles=5),
    "one importance weight": lambda: pv.objectives.ImportanceWeighted(1),
    "beta": lambda: pv.objectives.Beta(1.0),
}
REFUSED = {
    "importance-weighted": lambda: pv.objectives.ImportanceWeighted(50),
    "in a loop": lambda: pv.objectives.ImportanceWeighted(5, vectorize_particles=False),
    "doubly reparameterized": lambda: pv.objectives.ImportanceWeighted(
        50, doubly_reparameterized=True
    ),
    "beta": lambda: pv.objectives.Beta(1.0, pv.objectives.ImportanceWeighted(50)),
    "Renyi": lambda: RenyiELBO(num_particles=5, vectorize_particles=True),
}


def losses(objective, size, count=150):
    torch.manual_seed(0)
    return torch.tensor([-objective.loss(Model(size), Guide(size), X) for _ in range(count)])


@pytest.mark.thinned(5)
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_linear_objective_has_the_value_of_the_whole_plate(name, size):
    whole, part = losses(OBJECTIVES[name](), D), losses(OBJECTIVES[name](), size)
    error = (whole.var() / len(whole) + part.var() / len(part)) ** 0.5
    assert part.mean() < EXACT.sum() + 5 * error
    if name == "free bits":
        # The maximum of an estimated KL divergence is above that of its mean.
        assert part.mean() < whole.mean() + 5 * error
    else:
        assert abs(part.mean() - whole.mean()) < 5 * error


@pytest.mark.parametrize("name", REFUSED)
def test_a_bound_of_the_logarithm_of_a_mean_is_refused(name):
    make = REFUSED[name]
    for size in (1, 5):
        pair = pv.Pair(Model(size), Guide(size))
        message = r"the plates \['features'\] are subsampled .* run them whole"
        with pytest.raises(pv.PairError, match=message):
            pv.check(pair, X, objective=make())
        with pytest.raises(pv.PairError, match=message):
            pv.fit(pair, X, epochs=1, objective=make())
        if name != "Renyi":  # of Pyro
            with pytest.raises(pv.PairError, match=message):
                make().loss(pair.model, pair.guide, X)
        with pytest.raises(pv.PairError, match=message):
            pv.evaluate(pair, X, num_samples=5)


@pytest.mark.parametrize("name", REFUSED)
def test_whole_features_are_accepted(name):
    value = losses(REFUSED[name](), D, 100)
    assert value.mean() < EXACT.sum() + 5 * value.std() / len(value) ** 0.5


@pytest.mark.parametrize("size", [1, 2, 3, D])
def test_free_nats_are_those_of_the_whole_plate(size):
    """A threshold above the KL divergence replaces it."""

    def program(x, observe=True):
        features = pyro.plate("features", D, subsample_size=size, dim=-1)
        with pyro.plate("data", len(x), dim=-2), features as i:
            u = pyro.sample("u", dist.Normal(x.new_zeros(()), 1.0))
            if observe:
                pyro.sample("x", dist.Normal(0 * u, 1.0), obs=x[:, i])

    x = torch.ones(N, D).double()
    objective = pv.objectives.FreeBits(7.0)
    found = -objective.loss(program, lambda x: program(x, observe=False), x)
    rest = dist.Normal(0.0, 1.0).log_prob(x).sum()
    # Under `fit`, the threshold is per datum; here the terms of all data are added.
    assert found == pytest.approx((rest - 7.0 * N).item(), abs=1e-9)
