"""Programs after the examples and tutorials of Pyro's repository, without large networks.

Each function follows one example: its model, guide, objective, optimizer and learning rate, with
synthetic data in the place of a download. It takes the class `SVI`, seeds are set by the caller,
and returns a function without arguments that takes one step and returns the loss.
"""

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.easyguide import easy_guide
from pyro.distributions import constraints
from pyro.distributions.testing.fakes import NonreparameterizedBeta
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, autoguide, config_enumerate
from pyro.nn import PyroModule, PyroSample
from pyro.ops.indexing import Vindex
from pyro.optim import Adam
from torch import Tensor, nn

Step = Callable[[], float]
EXAMPLES: dict[str, Callable[[Any], Step]] = {}


def example(name: str) -> Callable[[Callable[[Any], Step]], Callable[[Any], Step]]:
    """Add a program to `EXAMPLES`, under the path of the example that it follows."""

    def add(make: Callable[[Any], Step]) -> Callable[[Any], Step]:
        EXAMPLES[name] = make
        return make

    return add


def positive(name: str, value: float | Tensor) -> Tensor:
    """Return a positive parameter of Pyro's store."""
    found: Tensor = pyro.param(name, torch.as_tensor(value), constraint=constraints.positive)
    return found


@example("tutorial/svi_part_i")
def coin(SVI: Any) -> Step:
    """A Beta latent and a Python list of observations."""
    data = [torch.tensor(1.0)] * 6 + [torch.tensor(0.0)] * 4

    def model(data: list[Tensor]) -> None:
        fairness = pyro.sample("f", dist.Beta(torch.tensor(10.0), torch.tensor(10.0)))
        for i in range(len(data)):
            pyro.sample(f"obs_{i}", dist.Bernoulli(fairness), obs=data[i])

    def guide(data: list[Tensor]) -> None:
        pyro.sample("f", dist.Beta(positive("alpha_q", 15.0), positive("beta_q", 15.0)))

    svi = SVI(model, guide, Adam({"lr": 0.0005, "betas": (0.90, 0.999)}), loss=Trace_ELBO())
    return lambda: svi.step(data)


class Baseline:
    """The class of the tutorial, which holds its data; model and guide are its methods."""

    def __init__(self) -> None:
        self.data = torch.tensor([1.0] * 6 + [0.0] * 4)

    def model(self, average: bool) -> None:
        """Score ten tosses of a coin."""
        fairness = pyro.sample("f", dist.Beta(10.0, 10.0))
        with pyro.plate("data_plate"):
            pyro.sample("obs", dist.Bernoulli(fairness), obs=self.data)

    def guide(self, average: bool) -> None:
        """Sample by the score function, with a decaying average as the baseline."""
        q = NonreparameterizedBeta(positive("alpha_q", 15.0), positive("beta_q", 15.0))
        baseline = {"use_decaying_avg_baseline": average, "baseline_beta": 0.90}
        pyro.sample("f", q, infer={"baseline": baseline})


@example("tutorial/svi_part_iii")
def baseline(SVI: Any) -> Step:
    """The score function with a decaying average baseline."""
    program = Baseline()
    optimizer = Adam({"lr": 0.0005, "betas": (0.93, 0.999)})
    svi = SVI(program.model, program.guide, optimizer, loss=TraceGraph_ELBO())
    return lambda: svi.step(True)


def nations() -> tuple[Tensor, Tensor, Tensor]:
    """Return a continent, a ruggedness and a log GDP of 170 nations."""
    africa, rugged = (torch.rand(170) < 0.3).float(), torch.rand(170) * 6
    return africa, rugged, 9.2 - 1.9 * africa - 0.2 * rugged + torch.randn(170)


class BayesianRegression(PyroModule):
    """Linear regression with priors of the weights, made by `PyroSample`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean of y."""
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean: Tensor = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


@example("tutorial/bayesian_regression")
def regression(SVI: Any) -> Step:
    """A `PyroModule` with `AutoDiagonalNormal`."""
    africa, rugged, gdp = nations()
    x = torch.stack([africa, rugged, africa * rugged], -1)
    model = BayesianRegression()
    svi = SVI(model, autoguide.AutoDiagonalNormal(model), Adam({"lr": 0.03}), loss=Trace_ELBO())
    return lambda: svi.step(x, gdp)


def ruggedness(africa: Tensor, rugged: Tensor, gdp: Tensor) -> None:
    """Score log GDP given continent and ruggedness."""
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b_a, b_r, b_ar = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("bA", "bR", "bAR"))
    sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
    with pyro.plate("data", len(rugged)):
        mean = a + b_a * africa + b_r * rugged + b_ar * africa * rugged
        pyro.sample("obs", dist.Normal(mean, sigma), obs=gdp)


@example("tutorial/bayesian_regression_ii")
def hand_written_guide(SVI: Any) -> Step:
    """A regression with a guide of `pyro.param`."""

    def guide(africa: Tensor, rugged: Tensor, gdp: Tensor) -> None:
        pyro.sample("a", dist.Normal(pyro.param("a_loc", torch.tensor(0.0)),
                                     positive("a_scale", 1.0)))  # fmt: skip
        loc = pyro.param("weights_loc", torch.randn(3))
        scale = positive("weights_scale", torch.ones(3))
        for i, name in enumerate(("bA", "bR", "bAR")):
            pyro.sample(name, dist.Normal(loc[i], scale[i]))
        pyro.sample("sigma", dist.Normal(positive("sigma_loc", 1.0), torch.tensor(0.05)))

    data = nations()
    svi = SVI(ruggedness, guide, Adam({"lr": 0.05}), loss=Trace_ELBO())
    return lambda: svi.step(*data)


@example("tutorial/intro_long")
def full_rank(SVI: Any) -> Step:
    """The regression with `AutoMultivariateNormal`."""
    data, guide = nations(), autoguide.AutoMultivariateNormal(ruggedness)
    svi = SVI(ruggedness, guide, Adam({"lr": 0.02}), Trace_ELBO())
    return lambda: svi.step(*data)


@example("tutorial/boosting_bbvi")
def boosting(SVI: Any) -> Step:
    """A function as the loss, and programs among the arguments of the step."""

    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.tensor([0.0]), torch.tensor([5.0])))
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(z * z, torch.tensor([0.1])), obs=data)

    def guide(data: Tensor, index: int) -> None:
        scale = positive(f"scale_{index}", torch.tensor([1.0]))
        pyro.sample("z", dist.Normal(pyro.param(f"loc_{index}", torch.tensor([0.0])), scale))

    def approximation(data: Tensor, components: list[Any], weights: Tensor) -> None:
        components[pyro.sample("assignment", dist.Categorical(weights))](data)

    def relbo(model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        approximation = kwargs.pop("approximation")
        traced, elbo = poutine.trace(guide), Trace_ELBO(max_plate_nesting=1)
        loss = elbo.differentiable_loss(model, traced, *args, **kwargs)
        replayed = poutine.replay(poutine.block(approximation, expose=["z"]), traced.trace)
        found = poutine.trace(replayed).get_trace(*args, **kwargs)
        bound: Tensor = loss + found.log_prob_sum()
        return bound

    data = dist.Normal(torch.tensor([4.0]), torch.tensor([0.1])).sample((100,))
    former = functools.partial(guide, index=0)
    mixture = functools.partial(approximation, components=[former], weights=torch.tensor([1.0]))
    optimizer = Adam({"lr": 0.01, "betas": (0.90, 0.999)})
    svi = SVI(model, functools.partial(guide, index=1), optimizer, loss=relbo)
    return lambda: svi.step(data, approximation=mixture)


@example("tutorial/easyguide")
def states(SVI: Any) -> Step:
    """A random walk of seven steps, subsampled, with an `EasyGuide` of low rank."""
    num_series, length, rank, batch = 100, 7, 3, 20

    def model(rows: Any, subsample: Tensor, full_size: int) -> None:
        drift = pyro.sample("drift", dist.LogNormal(-1, 0.5))
        with pyro.plate("data", full_size, subsample=subsample):
            z: Any = 0.0
            for t in range(length):
                z = pyro.sample(f"state_{t}", dist.Normal(z, drift))
                pyro.sample(f"obs_{t}", dist.Bernoulli(logits=z), obs=rows[t])

    @easy_guide(model)
    def guide(self: Any, rows: Tensor, subsample: Tensor, full_size: int) -> None:
        self.map_estimate("drift")
        group = self.group(match="state_[0-9]*")
        diagonal = positive("diagonal", torch.full(group.event_shape, 0.01))
        factor = pyro.param("factor", lambda: torch.randn((*group.event_shape, rank)) * 0.01)
        with self.plate("data", full_size, subsample=subsample):
            loc = pyro.param("loc", lambda: torch.full((full_size, length), 0.5), event_dim=1)
            group.sample("states", dist.LowRankMultivariateNormal(loc, factor, diagonal))

    data = (torch.rand(length, num_series) < 0.5).float()
    svi = SVI(model, guide, Adam({"lr": 0.02}), Trace_ELBO())
    position = [0]

    def step() -> float:
        rows = torch.arange(position[0], position[0] + batch)
        position[0] = (position[0] + batch) % num_series
        loss: float = svi.step(data[:, rows], rows, full_size=num_series)
        return loss

    return step


@example("tutorial/gmm")
def mixture(SVI: Any) -> Step:
    """A Gaussian mixture, assignments enumerated, with `AutoDelta`."""
    data = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])

    @config_enumerate
    def model(data: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(data)):
            assignment = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)

    guide = autoguide.AutoDelta(poutine.block(model, expose=["weights", "locs", "scale"]))
    optimizer = Adam({"lr": 0.1, "betas": (0.8, 0.99)})
    svi = SVI(model, guide, optimizer, loss=TraceEnum_ELBO(max_plate_nesting=1))
    return lambda: svi.step(data)


@example("tutorial/dirichlet_process_mixture")
def stick_breaking(SVI: Any) -> Step:
    """A truncated Dirichlet process with discrete assignments by the score function."""
    num_clusters = 6
    centers = torch.tensor([[-8.0, -8.0], [8.0, 8.0], [0.0, 0.0], [3.0, 5.0]])
    data = torch.cat([center + torch.randn(50, 2) for center in centers])

    def weights(beta: Tensor) -> Tensor:
        cumulative = (1 - beta).cumprod(-1)
        return nn.functional.pad(beta, (0, 1), value=1) * nn.functional.pad(
            cumulative, (1, 0), value=1
        )

    def model(data: Tensor) -> None:
        with pyro.plate("beta_plate", num_clusters - 1):
            beta = pyro.sample("beta", dist.Beta(1, 0.1))
        with pyro.plate("mu_plate", num_clusters):
            prior = dist.MultivariateNormal(torch.zeros(2), 5 * torch.eye(2))
            mu = pyro.sample("mu", prior)
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(weights(beta)))
            pyro.sample("obs", dist.MultivariateNormal(mu[z], torch.eye(2)), obs=data)

    def guide(data: Tensor) -> None:
        kappa = positive("kappa", 0.5 + torch.rand(num_clusters - 1))
        tau = pyro.param("tau", lambda: 3 * torch.randn(num_clusters, 2))
        flat = torch.full((len(data), num_clusters), 1 / num_clusters)
        phi = pyro.param("phi", lambda: flat, constraint=constraints.simplex)
        with pyro.plate("beta_plate", num_clusters - 1):
            pyro.sample("beta", dist.Beta(torch.ones(num_clusters - 1), kappa))
        with pyro.plate("mu_plate", num_clusters):
            pyro.sample("mu", dist.MultivariateNormal(tau, torch.eye(2)))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Categorical(phi))

    svi = SVI(model, guide, Adam({"lr": 0.05}), loss=Trace_ELBO())
    return lambda: svi.step(data)


@example("examples/eight_schools/svi.py")
def schools(SVI: Any) -> Step:
    """Eight schools, with global latents inside the plate."""
    effects = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
    errors = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
    data, num_schools = torch.stack([effects, errors], -1), 8

    def model(data: Tensor) -> None:
        with pyro.plate("data", num_schools):
            eta = pyro.sample("eta", dist.Normal(torch.zeros(num_schools), 1.0))
            mu = pyro.sample("mu", dist.Normal(torch.zeros(1), 10 * torch.ones(1)))
            tau = pyro.sample("tau", dist.HalfCauchy(scale=25 * torch.ones(1)))
            pyro.sample("obs", dist.Normal(mu + tau * eta, data[:, 1]), obs=data[:, 0])

    def guide(data: Tensor) -> None:
        def normal(name: str, size: int) -> dist.Normal:
            loc = pyro.param(f"loc_{name}", torch.randn(size))
            return dist.Normal(loc, positive(f"scale_{name}", 0.1 * torch.rand(size)))

        eta, mu, log_tau = normal("eta", num_schools), normal("mu", 1), normal("logtau", 1)
        with pyro.plate("data", num_schools):
            pyro.sample("eta", eta)
            pyro.sample("mu", mu)
            transform = dist.transforms.ExpTransform()
            pyro.sample("tau", dist.TransformedDistribution(log_tau, transform))

    svi = SVI(model, guide, Adam({"lr": 0.01}), loss=Trace_ELBO())
    return lambda: svi.step(data)


@example("examples/minipyro.py")
def minipyro(SVI: Any) -> Step:
    """One normal latent; guide parameters are created in the first step."""

    def model(data: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data), dim=-1):
            pyro.sample("obs", dist.Normal(loc, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        loc = pyro.param("guide_loc", torch.tensor(0.0))
        scale = torch.exp(pyro.param("guide_scale_log", torch.tensor(0.0)))
        pyro.sample("loc", dist.Normal(loc, scale))

    data = torch.randn(100) + 3.0
    svi = SVI(model, guide, Adam({"lr": 0.02}), Trace_ELBO())
    return lambda: svi.step(data)


@example("examples/toy_mixture_model_discrete_enumeration.py")
def network_of_bits(SVI: Any) -> Step:
    """Three binary variables, the middle one enumerated; observations in a dictionary."""
    prior = {
        "A": torch.tensor([1.0, 10.0]),
        "B": torch.tensor([[10.0, 1.0], [1.0, 10.0]]),
        "C": torch.tensor([[10.0, 1.0], [1.0, 10.0]]),
    }
    size = 1000
    data = {name: (torch.rand(size) < p).float() for name, p in (("A", 0.1), ("C", 0.7))}

    @config_enumerate
    def model(prior: dict[str, Tensor], obs: dict[str, Tensor], size: int) -> None:
        a = pyro.sample("p_A", dist.Beta(1, 1))
        b, c = (
            pyro.sample(name, dist.Beta(torch.ones(2), torch.ones(2)).to_event(1))
            for name in ("p_B", "p_C")
        )
        with pyro.plate("data_plate", size):
            first = pyro.sample("A", dist.Bernoulli(a.expand(size)), obs=obs["A"])
            second = pyro.sample("B", dist.Bernoulli(Vindex(b)[first.long()]))
            pyro.sample("C", dist.Bernoulli(Vindex(c)[second.long()]), obs=obs["C"])

    def guide(prior: dict[str, Tensor], obs: dict[str, Tensor], size: int) -> None:
        a, b, c = (positive(name.lower(), prior[name]) for name in "ABC")
        pyro.sample("p_A", dist.Beta(a[0], a[1]))
        pyro.sample("p_B", dist.Beta(b[:, 0], b[:, 1]).to_event(1))
        pyro.sample("p_C", dist.Beta(c[:, 0], c[:, 1]).to_event(1))

    svi = SVI(model, guide, Adam({"lr": 0.01}), loss=TraceEnum_ELBO(max_plate_nesting=1))
    return lambda: svi.step(prior, data, size)
