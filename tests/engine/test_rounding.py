"""engine/rounding.py: what rounding explains, and what it does not."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.engine import compiled_step
from pyro_vae.engine.compilation_warning import CompilationWarning
from pyro_vae.engine.rounding import rounding_errors
from pyro_vae.engine.tolerances import FLOOR, check_close, rounding_unit
from pyro_vae.engine.value_reader import NotCompilable
from pyro_vae.runtime.random_state import equal_random_states, random_state

UNIT = rounding_unit(1e-4)

DRAWS = {
    "randn": lambda x: torch.randn(5),
    "randn like": torch.randn_like,
    "rand, in place": lambda x: torch.empty(5).uniform_(),
    "normal, in place": lambda x: torch.empty_like(x).normal_(1, 2),
    "normal of tensors": lambda x: torch.normal(x, x.abs() + 1),
    "bernoulli": lambda x: torch.bernoulli(torch.full((5,), 0.3)),
    "exponential": lambda x: torch.empty(5).exponential_(),
    "gamma": lambda x: torch._standard_gamma(torch.full((5,), 2.5)),
    "poisson": lambda x: torch.poisson(torch.full((5,), 9.0)),
    "integers": lambda x: torch.randint(100, (5,)).float(),
    "permutation": lambda x: torch.randperm(5).float(),
    "multinomial": lambda x: torch.multinomial(torch.ones(5), 5).float(),
    "dropout": lambda x: nn.functional.dropout(torch.full((5,), 3.0), 0.4),
    "rsample": lambda x: dist.Normal(x, 1.0).rsample(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_double_precision_has_the_random_numbers_of_the_program(name):
    x, draw = torch.linspace(-1, 1, 5), DRAWS[name]
    before = random_state()
    drawn, after = rounding_errors(lambda x: [10 * draw(x)], [x], [0], UNIT)
    assert equal_random_states(before, random_state())
    assert torch.equal(x, torch.linspace(-1, 1, 5))
    assert after.max() == 0
    assert drawn.max() < 0.02  # other numbers would differ by about 10


def test_a_sum_that_cancels_has_the_error_of_its_terms():
    torch.manual_seed(0)
    x = torch.rand(10_000)

    def step(x):
        return [(0.1 * x).sum() - 0.1 * x.sum(), x.double().sum()]

    cancels, exact = (float(e) for e in rounding_errors(step, [x], [], UNIT)[:2])
    assert 0 < cancels < 1e-3 * float(x.sum())
    assert exact == 0


def test_rounding_explains_less_than_the_tolerance_of_a_plain_network():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 1)), torch.randn(50, 20)
    weights = [p.detach() for p in net.parameters()]

    def step(*weights):
        with torch.enable_grad():
            leaves = [w.clone().requires_grad_() for w in weights]
            first, a, second, b = leaves
            loss = ((x.to(first.dtype) @ first.t() + a).tanh() @ second.t() + b).square().sum()
            return [*torch.autograd.grad(loss, leaves)]

    expected = step(*weights)
    errors = rounding_errors(step, weights, range(4), UNIT)
    for gradient, error in zip(expected, errors, strict=False):
        assert 0 < float(error.max()) < 2e-3 * float(gradient.abs().max())


def test_a_step_without_double_precision_has_no_known_errors():
    def step(x):
        raise RuntimeError("not implemented for 'Double'")

    assert rounding_errors(step, [torch.ones(3)], [0], UNIT) == []


def test_double_precision_has_no_other_to_be_compared_with():
    x = torch.ones(3, dtype=torch.float64)
    assert rounding_errors(lambda x: [x / 3], [x], [0], UNIT) == []


@pytest.mark.parametrize(("error", "passes"), [(0.5, True), (2.0, False)])
def test_a_difference_is_compared_with_measured_errors(error, passes):
    large, zero, asked = torch.tensor([1e3]), torch.zeros(2), []

    def rounding():
        asked.append(1)
        return [torch.zeros(1), torch.ones(2)]

    actual = [large, torch.tensor([0.0, error])]
    if passes:
        check_close("it", actual, [large, zero], 1e-4, rounding=rounding)
    else:
        with pytest.raises(NotCompilable, match="it of the graph"):
            check_close("it", actual, [large, zero], 1e-4, rounding=rounding)
    assert asked == [1]
    with pytest.raises(NotCompilable):
        check_close("it", actual, [large, zero], 1e-4, rounding=list)


def test_measured_errors_hide_no_more_than_a_share_of_the_largest_entry():
    large, zero = torch.tensor([1e3]), torch.zeros(1)
    wrong = torch.tensor([1.01 * FLOOR * 1e3])
    unknown = [torch.zeros(1), torch.tensor([torch.inf])]
    with pytest.raises(NotCompilable):
        check_close("it", [large, wrong], [large, zero], 1e-4, rounding=lambda: unknown)


def steps(svi, x, count):
    for _ in range(count):
        svi.step(x)


def normalized(seed, slope=lambda: 0.0):
    """Return a VAE with batch normalization; the gradient of the bias before it is zero."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    decoder = nn.Linear(2, 20)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.1).to_event(1), obs=x)
        weight = decoder.weight
        pyro.factor("zero, with a gradient", slope() * (weight - weight.detach()).sum())

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("rows", len(x)):
            loc, log_var = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (log_var / 2).exp()).to_event(1))

    x = torch.randn(2000, 20) + 3
    svi = pv.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), compile=True)
    return svi, x, encoder


@pytest.mark.parametrize("seed", range(3))
def test_gradients_that_are_zero_but_for_rounding_are_no_difference(seed):
    svi, x, _ = normalized(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(svi, x, 10)
    assert svi.num_compiled_steps == 9


def test_another_gradient_of_such_a_program_is_a_difference(tmp_path):
    path = tmp_path / "factor.txt"  # no guard sees the content of a file
    path.write_text("0")
    svi, x, _ = normalized(0, lambda: float(path.read_text()))
    steps(svi, x, 3)
    path.write_text("2e3")  # half a percent of the largest gradient of the decoder
    with pytest.warns(CompilationWarning, match=r"in step \d+ the compiled step is wrong"):
        steps(svi, x, 60)
    assert svi.num_compiled_steps < 60


def compiled_with_rounding(graph, inputs):
    """Return a program that computes with weights that are off by four units of rounding."""

    def program(*tensors):
        weights = [t for t in tensors if t.dtype == torch.float32 and t.shape == (UNITS, 2)]
        signs = torch.randint(2, (UNITS, 2), generator=torch.Generator().manual_seed(0))
        factor = 1 + (2 * signs - 1) * 2.0**-21
        for weight in weights:
            weight *= factor
        results = graph(*tensors)
        for weight in weights:
            weight /= factor
        return results

    return program


UNITS = 8


def at_the_kink(seed, slope=lambda: 0.0):
    """Return a network whose ReLUs have inputs of zero, but for rounding, for one of two rows.

    Whether they are open decides about most of the gradient.
    """
    pyro.clear_param_store()
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, UNITS, bias=False), nn.ReLU(), nn.Linear(UNITS, 1))
    with torch.no_grad():
        net[0].weight[:] = torch.rand(UNITS, 1) + 0.5

    def model(x):
        pyro.module("net", net)
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(net(x).squeeze(-1), 0.1), obs=x.sum(-1) + 5)
        weight = net[2].weight
        pyro.factor("zero, with a gradient", slope() * (weight - weight.detach()).sum())

    optim = pyro.optim.Adam({"lr": 1e-9})  # the inputs stay zero
    x = torch.tensor([[100.0, -100.0], [0.02, 0.01]])
    return pv.SVI(model, lambda x: None, optim, compile=True), x


@pytest.mark.parametrize("seed", range(6))
def test_a_unit_that_changes_sides_is_no_difference(seed, monkeypatch):
    monkeypatch.setattr(compiled_step, "compile_graph", compiled_with_rounding)
    svi, x = at_the_kink(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(svi, x, 60)
    assert svi.num_compiled_steps == 59


def test_another_gradient_of_such_a_network_is_a_difference(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled_step, "compile_graph", compiled_with_rounding)
    path = tmp_path / "factor.txt"
    path.write_text("0")
    svi, x = at_the_kink(0, lambda: float(path.read_text()))
    steps(svi, x, 3)
    path.write_text("20")  # a hundredth of the largest gradient
    with pytest.warns(CompilationWarning, match="depends on something that the graph does not see"):
        steps(svi, x, 60)


def test_a_wrong_compiler_is_found(monkeypatch):
    def wrong(graph, inputs):
        def program(*tensors):
            results = graph(*tensors)
            calls.append(1)
            for tensor in tensors[1:]:
                if tensor.dtype == torch.float32 and tensor.dim() and len(calls) > 20:
                    tensor += 0.02 * tensor.abs().max()
            return results

        return program

    calls = []
    monkeypatch.setattr(compiled_step, "compile_graph", wrong)
    svi, x = at_the_kink(0)
    with pytest.warns(CompilationWarning, match="the compiler gives other numbers|updates"):
        steps(svi, x, 60)


@pytest.mark.parametrize("seed", range(5))
def test_every_unit_near_its_kink_is_measured(seed):
    """The inputs of 500 units are zero; each is open in some runs, and closed in others."""
    torch.manual_seed(seed)
    weight, x = torch.rand(500, 40), torch.ones(40)
    weight[:, -1] = -weight[:, :-1].sum(1)

    def step(weight):
        return [(weight @ x.to(weight.dtype) > 0).to(weight.dtype)]

    assert rounding_errors(step, [weight], [0], UNIT)[0].min() > 0
