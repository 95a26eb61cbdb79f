"""Matrix products by oneDNN equal torch's."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.engine import matmul


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(matmul, "LARGE_PRODUCT", 1000)
    monkeypatch.setattr(matmul, "has_half_speed_blas", lambda: True)


def test_products_are_torchs(fast):
    a, b, bias = torch.randn(30, 50), torch.randn(50, 20), torch.randn(20)
    for left in (a, a.t().contiguous().t()):
        for right in (b, b.t().contiguous().t()):
            torch.testing.assert_close(matmul.product(left, right), a @ b)
            torch.testing.assert_close(matmul.product(left, right, bias), a @ b + bias)
    assert matmul.product(a.double(), b.double()) is NotImplemented
    assert matmul.product(a[:1], b[:, :1]) is NotImplemented


def test_nothing_changes_where_torchs_products_use_the_processor(monkeypatch):
    monkeypatch.setattr(matmul, "has_half_speed_blas", lambda: False)
    assert matmul.product(torch.ones(200, 200), torch.ones(200, 200)) is NotImplemented


@pytest.mark.parametrize(
    ("name", "avx512", "described", "expected"),
    [
        ("AMD EPYC", True, "vendor_id : AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2", True),
        ("AMD EPYC", True, "cpu family\t: 25\nmodel\t\t: 17", False),
        ("AMD EPYC", False, "cpu family\t: 23", False),
        ("AMD Ryzen", True, "AMD64 Family 26 Model 68 Stepping 0, AuthenticAMD", True),
        ("AMD Ryzen", True, "", False),
        ("Intel Xeon", True, "cpu family\t: 6", False),
    ],
)
def test_onednn_is_taken_on_amd_processors_with_units_of_512_bits(
    name, avx512, described, expected, monkeypatch
):
    def no_file(path):
        raise FileNotFoundError

    if described.startswith("AMD64"):
        monkeypatch.setattr(matmul.Path, "read_text", no_file)
        monkeypatch.setattr(matmul.platform, "processor", lambda: described)
    else:
        monkeypatch.setattr(matmul.Path, "read_text", lambda path: described)
    found = {"cpu_name": name, "avx512_f": avx512}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert matmul.has_half_speed_blas.__wrapped__() is expected


@pytest.fixture
def taken(monkeypatch):
    """Record calls of `product` (without gradients) and `_Linear` (with gradients)."""
    calls = []

    def watch(owner, name):
        real = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda a, *rest: calls.append((name, *a.shape)) or real(a, *rest)
        )

    watch(matmul, "product")
    watch(matmul._Linear, "apply")
    return calls


def test_layers_are_fast_and_torchs(fast, taken):
    x, layer = torch.randn(3, 5, 40), torch.nn.Linear(40, 30)
    expected = layer(x)
    with matmul.fast_layers([layer]), matmul.fast_layers([layer]):
        assert torch.equal(layer(x), expected)  # too small with gradients
        assert not taken
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected)
            torch.testing.assert_close(layer(x[0, 0]), expected[0, 0])  # a vector
    assert taken == [("product", 15, 40)]
    assert "forward" not in vars(layer)  # restored
    with pytest.raises(RuntimeError, match="shapes"), matmul.fast_layers([layer]):
        layer(x.mT)
    assert "forward" not in vars(layer)


def test_layers_with_a_forward_of_their_own_keep_it(fast):
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    doubled, patched = Doubled(40, 30), torch.nn.Linear(40, 30)
    patched.forward = lambda x: x
    x = torch.randn(50, 40)
    expected = doubled(x)
    with torch.no_grad(), matmul.fast_layers([doubled, patched]):
        assert torch.equal(doubled(x), expected)
        assert patched(x) is x
    assert patched(x) is x


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_fast_layers_are_torchs(fast, taken, monkeypatch, bias):
    monkeypatch.setattr(matmul, "LARGE_LAYER", 1000)
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
    with matmul.fast_layers([layer]):
        torch.testing.assert_close(gradients(False), expected[0])
        # The layer and two of its gradients.
        assert taken == [("apply", 15, 40), ("product", 15, 30), ("product", 30, 15)]
        torch.testing.assert_close(penalty(), expected[1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.vmap(layer)(x), layer(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype is torch.bfloat16
    assert sum(name == "apply" for name, *_ in taken) == 3


def programs(kind):
    networks = torch.nn.Linear(30, 20), torch.nn.Linear(20, 4), torch.nn.Linear(2, 30)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.MLP(2, [20], 30)),
        pv.guides.DiagonalNormal(pv.networks.MLP(30, [20], 4)),
    )
    if kind == "package":
        return vae.model, vae.guide
    if kind == "per datum":
        return [pv.objectives.per_datum(program, 1000) for program in (vae.model, vae.guide)]
    first, second, decoder = networks

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("first", first)
        pyro.module("second", second)
        loc, scale = second(first(x).tanh()).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    return model, guide


@pytest.mark.parametrize(("kind", "num_fast"), [("package", 6), ("per datum", 6), ("Pyro", 3)])
def test_eager_steps_take_fast_layers_where_these_are_large(
    fast, taken, monkeypatch, kind, num_fast
):
    """For the package's programs, their versions per datum, and plain functions."""
    monkeypatch.setattr(matmul, "LARGE_LAYER", 50 * 600)

    def train(num_data):
        pyro.clear_param_store()
        taken.clear()
        torch.manual_seed(0)
        optim = functools.partial(torch.optim.Adam, lr=0.01)
        steps = pv.SVI(*programs(kind), optim, compile=False)
        x = (torch.rand(num_data, 30) < 0.5).float()
        losses = [steps.step(x) for _ in range(3)]
        assert not any("forward" in vars(module) for module in steps._modules or ())
        return losses, sum(name == "apply" for name, *_ in taken)

    losses, count = train(50)
    assert count == num_fast  # layers between 30 pixels and 20 hidden units, in three steps
    assert train(49)[1] == 0
    monkeypatch.setattr(matmul, "has_half_speed_blas", lambda: False)
    plain, count = train(50)
    assert count == 0
    np.testing.assert_allclose(losses, plain, rtol=1e-5)
