"""`VAE`: stock Pyro inference, predictive samples, saving and loading."""

import copy

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO

import pyro_vae as pv
from tests.support.linear_gaussian import linear_vae


def small_vae(latent_dim=3):
    return pv.VAE(
        pv.priors.StandardNormal(latent_dim),
        pv.likelihoods.Bernoulli(pv.networks.MLP(latent_dim, [16], (1, 4, 4))),
        pv.guides.DiagonalNormal(pv.networks.MLP((1, 4, 4), [16], 2 * latent_dim)),
    )


@pytest.fixture
def x():
    return (torch.rand(32, 1, 4, 4) < 0.3).float()


@pytest.mark.parametrize(
    "loss",
    [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        Trace_ELBO(num_particles=3),
    ],
)
def test_stock_svi_trains_two_vaes_in_one_process_without_the_store(x, loss):
    for _ in range(2):
        vae = small_vae()
        before = copy.deepcopy(vae)
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), loss=loss)
        first, *_, last = [svi.step(x) for _ in range(60)]
        assert last < 0.95 * first
        for old, new in zip(before.parameters(), vae.parameters(), strict=True):
            assert not torch.equal(old, new)
    assert not list(pyro.get_param_store().keys())


def test_the_bound_as_a_module_exposes_every_parameter(x):
    vae = small_vae()
    bound = Trace_ELBO()(vae.model, vae.guide)
    assert set(bound.parameters()) == set(vae.parameters())
    bound(x).backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_never_returns_the_data(x, parallel):
    vae = small_vae()
    posterior = Predictive(vae.model, guide=vae.guide, num_samples=4, parallel=parallel)(x)["x"]
    prior = Predictive(vae.model, num_samples=4, parallel=parallel)(x)["x"]
    alone = Predictive(vae.model, num_samples=4, parallel=parallel)()["x"]
    assert posterior.shape == prior.shape == (4, *x.shape)
    assert alone.shape == (4, 1, 1, 4, 4)
    for draws in (posterior, prior):
        # 512 pixels of fair-ish coins: a draw that equals the data, or another draw, is a copy.
        assert all(not torch.equal(draw, x) for draw in draws)
        assert not torch.equal(draws[0], draws[1])


def test_posterior_predictive_follows_the_exact_posterior():
    vae, x = linear_vae()
    draws = Predictive(vae.model, guide=vae.guide, num_samples=4000, parallel=True)(x)["x"]
    decoder = vae.model.likelihood
    gain, covariance = decoder.posterior_terms()
    mean = (x - decoder.mean) @ gain.T @ decoder.weight.T + decoder.mean
    variance = (decoder.weight @ covariance @ decoder.weight.T).diagonal() + 0.7**2
    error = (variance / 4000).sqrt()
    assert ((draws.mean(0) - mean).abs() < 5 * error).all()
    assert ((draws.var(0) / variance - 1).abs() < 5 * (2 / 4000) ** 0.5).all()


def test_observed_log_density_is_that_of_the_parts(x):
    vae = small_vae()
    trace = poutine.trace(vae.model).get_trace(x)
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], vae.decode(z).log_prob(x))
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], vae.model.prior().log_prob(z))


def test_replace_swaps_one_part_and_shares_the_rest():
    vae = small_vae()
    prior = pv.priors.StandardNormal(3)
    other = vae.replace(prior=prior)
    assert other.model.prior is prior
    assert other.model.likelihood is vae.model.likelihood
    assert vae.model.prior is not prior


def test_sample_and_reconstruct_have_the_data_s_shape_and_leave_the_mode(x):
    vae = small_vae()
    assert vae.sample(7).shape == (7, 1, 4, 4)
    reconstruction = vae.reconstruct(x)
    assert reconstruction.shape == x.shape
    assert ((reconstruction > 0) & (reconstruction < 1)).all()
    assert all(module.training for module in vae.modules())


def test_saved_as_data_and_loaded_alike(x, tmp_path):
    vae = small_vae()
    vae.save(tmp_path / "model")
    vae.save(tmp_path / "model")  # over an older one
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
    loaded = pv.load(tmp_path / "model")
    torch.testing.assert_close(loaded.encode(x).mean, vae.encode(x).mean, rtol=0, atol=0)
    z = torch.randn(5, 3)
    torch.testing.assert_close(loaded.decode(z).mean, vae.decode(z).mean, rtol=0, atol=0)


class Doubled(pv.Part):
    """A user-defined network."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, values):
        return 2 * self.inner(values)


def test_a_user_s_own_part_saves_and_loads_once_it_is_imported(tmp_path, monkeypatch):
    vae = small_vae()
    network = Doubled(pv.networks.MLP((1, 4, 4), [], 6))
    vae = vae.replace(guide=pv.guides.DiagonalNormal(network))
    vae.save(tmp_path / "model")
    assert isinstance(pv.load(tmp_path / "model").guide.posterior.encoder, Doubled)
    monkeypatch.delitem(pv.Part.classes, Doubled.class_name)
    with pytest.raises(pv.CheckpointError, match=r"tests\.models\.test_vae\.Doubled.*not imported"):
        pv.load(tmp_path / "model")


def test_what_is_no_data_is_refused_and_nothing_is_written(tmp_path):
    vae = small_vae().replace(prior=lambda: torch.distributions.Normal(0, 1))
    with pytest.raises(pv.CheckpointError, match=r"part\.prior is a function"):
        vae.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_damaged_and_missing_files_are_named(tmp_path):
    with pytest.raises(pv.CheckpointError, match=r"architecture\.json is missing"):
        pv.load(tmp_path)
    small_vae().save(tmp_path / "model")
    weights = tmp_path / "model" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(pv.CheckpointError, match="damaged"):
        pv.load(tmp_path / "model")
    (tmp_path / "model" / "architecture.json").write_text("{")
    with pytest.raises(pv.CheckpointError, match="damaged"):
        pv.load(tmp_path / "model")


@pytest.mark.parametrize("schema", ["x", 3, [], {}, pv.networks.MLP(2, [2], 2), pv.data.Column])
def test_a_schema_is_one_of_data(schema):
    parts = (
        pv.priors.StandardNormal(1),
        pv.likelihoods.Bernoulli(pv.networks.MLP(1, [], 2)),
        pv.guides.DiagonalNormal(pv.networks.MLP(2, [], 2)),
    )
    with pytest.raises(ValueError, match="schema must be the schema of a dataset"):
        pv.VAE(*parts, schema=schema)


@pytest.mark.filterwarnings("ignore::pyro_vae.engine.compilation_warning.CompilationWarning")
@pytest.mark.parametrize(
    "x",
    [None, 3, "x", [], torch.ones(4, 1, 4, 4).numpy(), torch.full((4, 1, 4, 4), torch.nan),
     torch.ones(4, 5), torch.ones(0, 1, 4, 4), torch.ones(4, 1, 4, 4).long(),
     torch.ones(4, 1, 4, 4, device="meta"), torch.full((4, 1, 4, 4), 2.0)],
)  # fmt: skip
def test_a_step_on_a_wrong_batch_fails_as_a_step_of_pyro(x):
    failed = []
    for kind in (pv.SVI, SVI):
        torch.manual_seed(0)
        vae = small_vae()
        before = [parameter.clone() for parameter in vae.parameters()]
        stock = pyro.optim.Adam({"lr": 1e-3})
        optim = torch.optim.Adam(vae.parameters(), lr=1e-3) if kind is pv.SVI else stock
        with pytest.raises(Exception) as error:  # noqa: PT011
            kind(vae.model, vae.guide, optim, Trace_ELBO()).step(x)
        failed.append((error.type, str(error.value)))
        assert all(map(torch.equal, before, vae.parameters()))
    assert failed[0] == failed[1]
