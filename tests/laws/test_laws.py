"""Laws that hold for every part in the catalogue."""

import copy
import inspect
import itertools

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import guides, likelihoods, networks, priors
from pyro_vae.checkpointing import model_folder as checkpoints
from tests.support.catalogue import EVENT_SHAPE, GUIDES, LIKELIHOODS, NETWORKS, PRIORS

KINDS = {"prior": PRIORS, "guide": GUIDES, "likelihood": LIKELIHOODS, "network": NETWORKS}
LATENT_DIM = 2  # size of the latents in tests of likelihoods


def lines(*kinds, only=lambda kind, line: True):
    return pytest.mark.parametrize(
        ("kind", "line"),
        [
            pytest.param(kind, line, id=f"{kind}: {name}")
            for kind in kinds
            for name, line in KINDS[kind].items()
            if only(kind, line)
        ],
    )


def build(kind, line):
    return line.build(LATENT_DIM) if kind == "likelihood" else line.build()


def inputs(kind, part, batch=(3,), dtype=torch.float32):
    """Return the arguments of a call of a part, with the same values in every dtype."""
    if kind == "prior":
        return ()
    shape = {"guide": EVENT_SHAPE, "likelihood": (LATENT_DIM,), "network": None}[kind]
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(*batch, *(shape or part.in_shape), generator=generator)
    return (values.to(dtype),)


def describe(kind, line, dtype=torch.float64, batch=()):
    part = build(kind, line).to(dtype)
    return part(*inputs(kind, part, batch, dtype))


# A grid over a support: points and weights such that weights @ f(points) is the integral or the sum
# of f. The real line uses the trapezoidal rule in u, x = sinh u, which converges geometrically for
# smooth functions, including those with heavy tails.


def grid(support, shape=()):
    """Return points of shape `(P, *shape)` and weights of shape `(P,)`, in float64."""
    if hasattr(getattr(support, "base_constraint", None), "places"):  # columns of several kinds
        return grid(support.base_constraint)
    if isinstance(support, constraints.independent):
        return product([grid(support.base_constraint)] * shape[-1])
    if hasattr(support, "base_constraint"):  # of a mixture
        return grid(support.base_constraint, shape)
    if hasattr(support, "base"):  # or missing
        return grid(support.base, shape)
    if hasattr(support, "places"):
        by_place = {
            place: s for s, at in zip(support.supports, support.places, strict=True) for place in at
        }
        return product([grid(by_place[place]) for place in sorted(by_place)])
    name = str(support).removesuffix("()")
    if name == "Real":
        u = torch.linspace(-8, 8, 401, dtype=torch.float64)
        return u.sinh(), u.cosh() * 0.04
    if name == "GreaterThan(lower_bound=0.0)":
        u = torch.linspace(-25, 25, 1001, dtype=torch.float64)
        return u.exp(), u.exp() * 0.05
    if "Interval" in name:
        # x = sigmoid(2 sinh u) approaches the ends fast. The density may be infinite there.
        u = torch.linspace(-3.4, 3.4, 801, dtype=torch.float64)
        x = (2 * u.sinh()).sigmoid()
        return x, 2 * u.cosh() * x * (1 - x) * 0.0085
    if name == "Simplex":
        # A stick broken twice; densities are with respect to the first two shares.
        (first, w1), (rest, w2) = grid(constraints.unit_interval), grid(constraints.unit_interval)
        a, b = (t.flatten() for t in torch.meshgrid(first, rest, indexing="ij"))
        second = (1 - a) * b
        weights = torch.outer(w1, w2).flatten() * (1 - a)
        return torch.stack([a, second, (1 - a) * (1 - b)], -1), weights
    if name == "Sphere":
        # Archimedes: the area of a zone is proportional to its height.
        nodes, w = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(200))
        angle = torch.arange(400, dtype=torch.float64) * (2 * torch.pi / 400)
        z, phi = (t.flatten() for t in torch.meshgrid(nodes, angle, indexing="ij"))
        ring = (1 - z.square()).sqrt()
        weights = w.repeat_interleave(400) * (2 * torch.pi / 400)
        return torch.stack([ring * phi.cos(), ring * phi.sin(), z], -1), weights
    if name == "OneHot":
        points = torch.eye(shape[-1], dtype=torch.float64)
    elif name == "Boolean":
        points = torch.tensor([0.0, 1.0], dtype=torch.float64)
    elif "NonnegativeInteger" in name or name == "IntegerGreaterThan(lower_bound=0)":
        points = torch.arange(500, dtype=torch.float64)
    elif hasattr(support, "num_levels"):
        points = torch.arange(support.num_levels, dtype=torch.float64) * support.spacing
    else:
        raise NotImplementedError(f"no grid for the support {support}: add one")
    return points, torch.ones(len(points), dtype=torch.float64)


def product(grids):
    points = torch.stack(
        [t.flatten() for t in torch.meshgrid(*[p for p, _ in grids], indexing="ij")], -1
    )
    weights = torch.ones(1, dtype=torch.float64)
    for _, w in grids:
        weights = torch.outer(weights, w).flatten()
    return points, weights


def features(values: Tensor) -> Tensor:
    """Return bounded functions of a vector. Their means identify a distribution."""
    squashed = torch.tanh(values)
    pairs = itertools.combinations_with_replacement(range(values.shape[-1]), 2)
    products = [squashed[..., i] * squashed[..., j] for i, j in pairs]
    return torch.cat([squashed, torch.cos(values), torch.stack(products, -1)], -1)


@pytest.mark.parametrize("module", [priors, guides, likelihoods, networks])
def test_every_exported_part_has_a_line(module):
    kind = module.__name__.removeprefix("pyro_vae.").removesuffix("s")
    built = {type(build(kind, line)) for line in KINDS[kind].values()}
    exported = {
        part
        for name, part in vars(module).items()
        if inspect.isclass(part)
        and issubclass(part, pv.Part)
        and part is not pv.Part
        and not name.startswith("_")
        and not inspect.isabstract(part)
    }
    assert built == exported
    for name, line in KINDS[kind].items():
        assert name.split(",")[0] == type(build(kind, line)).__name__


@pytest.mark.parametrize("batch", [(), (4,), (3, 4)])
@lines("prior", "guide", "likelihood")
def test_shapes(kind, line, batch):
    part = build(kind, line)
    described = part(*inputs(kind, part, batch))
    batch = () if kind == "prior" else batch
    assert described.batch_shape == batch
    if kind == "likelihood":
        assert described.event_shape == EVENT_SHAPE
    else:
        assert len(described.event_shape) == 1
    draws = described.sample((2,))
    assert draws.shape == (2, *batch, *described.event_shape)
    assert described.log_prob(draws).shape == (2, *batch)
    # A value for each of two rows broadcasts with a batch, as a mixture's components need it.
    alone = described.sample().reshape(-1, *described.event_shape)[0]
    assert described.log_prob(alone).shape == batch


@pytest.mark.parametrize("batch", [(), (4,), (3, 4)])
@lines("network")
def test_networks_take_any_leading_dimensions(kind, line, batch):
    network = line.build()
    (values,) = inputs(kind, network, batch)
    out = network(values)
    assert out.shape == (*batch, *network.out_shape)
    flat = network(values.reshape(-1, *network.in_shape))
    torch.testing.assert_close(out.reshape(flat.shape), flat)
    with pytest.raises(ValueError, match="takes inputs of shape"):
        network(torch.zeros(*batch, *network.in_shape[:-1], network.in_shape[-1] + 1))


@lines("prior", "guide", "likelihood", only=lambda kind, line: line.normalized)
def test_the_density_sums_to_one(kind, line):
    described = describe(kind, line)
    points, weights = grid(described.support, described.event_shape)
    total = weights @ described.log_prob(points).exp()
    assert total.item() == pytest.approx(1, abs=1e-3)


@lines("prior", "guide", "likelihood", only=lambda kind, line: line.normalized)
def test_draws_follow_the_density(kind, line):
    described = describe(kind, line)
    points, weights = grid(described.support, described.event_shape)
    expected = (weights * described.log_prob(points).exp()) @ features(points)
    draws = features(described.sample((20_000,)))
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() <= 5 * error + 1e-3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@lines("prior", "guide", "likelihood")
def test_draws_are_in_the_support_and_have_a_finite_density(kind, line, dtype):
    described = describe(kind, line, dtype, batch=(3,))
    draws = described.sample((1000,))
    assert draws.dtype == dtype
    assert described.support.check(draws).all()
    log_prob = described.log_prob(draws)
    assert log_prob.dtype == dtype
    assert log_prob.isfinite().all()


@lines("prior", "guide", "likelihood")
def test_expanding_repeats_the_distribution(kind, line):
    described = describe(kind, line, batch=(3,))
    shape = (4, 3)
    expanded = described.expand(torch.Size(shape))
    assert expanded.batch_shape == shape
    assert expanded.event_shape == described.event_shape
    draws = expanded.sample()
    assert draws.shape == (*shape, *described.event_shape)
    assert not torch.equal(draws[0], draws[1])
    torch.testing.assert_close(expanded.log_prob(draws), described.log_prob(draws))


def has_parameters(kind, line):
    return any(True for _ in build(kind, line).parameters())


@lines("prior", "guide", "likelihood", "network", only=has_parameters)
def test_gradients_reach_every_parameter(kind, line):
    part = build(kind, line).double()
    result = part(*inputs(kind, part, (8,), torch.float64))
    if kind != "network":
        result = result.log_prob(result.sample((64,)))
    result.square().sum().backward()
    for name, parameter in part.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@lines("guide")
def test_draws_carry_gradients_where_the_guide_is_reparameterized(kind, line):
    described = describe(kind, line, batch=(8,))
    assert described.has_rsample == line.reparameterized
    if line.reparameterized:
        part = line.build().double()
        part(*inputs(kind, part, (8,), torch.float64)).rsample().square().sum().backward()
        with_gradient = [p for p in part.parameters() if p.grad is not None and p.grad.any()]
        assert with_gradient


@lines("prior", "guide", "likelihood")
def test_float32_agrees_with_float64(kind, line):
    part = build(kind, line)
    single = part(*inputs(kind, part, (8,)))
    draws = single.sample((50,)).clone()  # a clone, so that a flow does not use its cache
    double = copy.deepcopy(part).double()
    with pyro.validation_enabled(False):  # float32 unit vectors are rounded
        reference = double(*inputs(kind, part, (8,), torch.float64)).log_prob(draws.double())
    single = single.log_prob(draws)
    torch.testing.assert_close(single.double(), reference, rtol=1e-3, atol=1e-3)


@lines("prior", "guide", "likelihood", "network", only=lambda kind, line: line.saves)
def test_saved_and_loaded_alike(kind, line, tmp_path):
    part = build(kind, line)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    checkpoints.save(part, tmp_path / "part")
    torch.manual_seed(99)  # random initial values must have no effect
    loaded = pv.load(tmp_path / "part")
    assert_alike(kind, part, loaded)


@lines("prior", only=lambda kind, line: not line.saves)
def test_what_cannot_be_saved_says_so(kind, line, tmp_path):
    with pytest.raises(pv.CheckpointError, match="is not serializable: use a subclass of"):
        checkpoints.save(build(kind, line), tmp_path / "part")


@lines("prior", "guide", "likelihood", "network")
def test_a_used_part_can_be_copied(kind, line):
    part = build(kind, line)
    result = part(*inputs(kind, part))
    if kind != "network":
        result.log_prob(result.sample())
    assert_alike(kind, part, copy.deepcopy(part))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@lines("prior", "guide", "likelihood", "network", only=lambda kind, line: line.saves)
def test_the_gpu_agrees_with_the_cpu(kind, line):
    part = build(kind, line)
    values = inputs(kind, part)
    there = copy.deepcopy(part).cuda()(*[value.cuda() for value in values])
    here = part(*values)
    if kind != "network":
        draws = there.sample()
        assert draws.is_cuda
        here, there = here.log_prob(draws.cpu()), there.log_prob(draws)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def assert_alike(kind, part: nn.Module, other: nn.Module):
    assert type(part) is type(other)
    values = inputs(kind, part)
    here, there = part(*values), other(*values)
    if kind != "network":
        draws = here.sample((20,))
        here, there = (described.log_prob(draws.clone()) for described in (here, there))
    torch.testing.assert_close(there, here)
