"""`suggest`: VAEs of random tables train, score in the unit of the data, and return tables."""

import math

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyro_vae as pv
from pyro_vae.data.errors import DataError
from pyro_vae.models.suggestion import GUIDES, LIKELIHOODS, PRIORS
from tests.support.tables import nullable, random_table


def trained(frame, epochs=1, **options):
    torch.manual_seed(0)
    vae = pv.suggest(frame, hidden=[8], show=False, **options)
    pv.fit(vae, frame, epochs=epochs, batch_size=16, compile=False, progress=False)
    return vae


@pytest.mark.parametrize("seed", range(3))
def test_a_table_of_every_kind_is_modelled(seed):
    values, kinds = random_table(seed)
    frame = pd.DataFrame(values)
    vae = trained(frame)
    assert np.isfinite(pv.evaluate(vae, frame, num_samples=8).log_likelihood).all()
    rows = {"pandas": nullable(values), "polars": pl.DataFrame(values)}
    modelled = vae.schema.names()
    for library, table in rows.items():
        assert vae.encode(table).mean.shape == (len(frame), len(modelled) // 3)
        with torch.no_grad():
            assert torch.equal(vae.encode(table).mean, vae.encode(vae.schema.read(table)[:]).mean)
        reconstructed = vae.reconstruct(table)
        completed, *draws = [vae.impute(table, 5), *vae.impute(table, 2, draws=True)]
        assert type(reconstructed) is type(completed) is type(table), library
        vae.schema.read(reconstructed)  # valid values and levels of each column
        for filled in (completed, *draws):
            assert len(draws) == 2
            assert list(filled.columns) == list(table.columns)
            assert not vae.schema.read(filled)[:].isnan().any()
            for name, column in values.items():
                found = filled[name].to_list()
                if kinds[name] == "constant":
                    continue  # not modelled
                assert all(f == v for f, v in zip(found, column, strict=True) if v is not None)
            assert [str(t) for t in filled.dtypes] == [str(t) for t in table.dtypes]
    samples = vae.schema.restore(vae.sample(50))
    assert not vae.schema.read(samples)[:].isnan().any()


def test_tensors_give_tensors():
    frame = pd.DataFrame(random_table(1)[0])
    vae = trained(frame)
    x = vae.schema.read(frame)[:]
    with torch.no_grad():
        assert torch.equal(vae.reconstruct(x), vae.decode(vae.encode(x).mean).mean)
    torch.manual_seed(3)
    draws = vae.impute(x, 4)
    assert draws.shape == (4, *x.shape)
    observed = ~x.isnan()
    assert torch.equal(draws[2][observed], x[observed])
    torch.manual_seed(3)
    z = vae.encode(x).sample((4,))
    with torch.no_grad():
        assert torch.equal(draws, torch.where(x.isnan(), vae.decode(z).sample(), x))


def test_arrays_and_files_are_completed_too(tmp_path):
    values = {"a": [1.5, None, -2.5, 3.25], "b": [0.5, -0.25, None, 2.0]}
    frame = pd.DataFrame(values)
    vae = trained(frame)
    path = tmp_path / "table.csv"
    frame.to_csv(path, index=False)
    array = frame.to_numpy()
    for source in (path, array):
        torch.manual_seed(0)
        filled = np.asarray(vae.impute(source, 9), np.float64)
        torch.manual_seed(0)
        np.testing.assert_array_equal(filled, np.asarray(vae.impute(frame, 9), np.float64))
        np.testing.assert_array_equal(filled[~np.isnan(array)], array[~np.isnan(array)])
    assert isinstance(vae.reconstruct(array), np.ndarray)
    assert isinstance(vae.reconstruct(path), pd.DataFrame)


INDICES = {
    "names": [*"uvwxyz"],
    "reversed": [5, 4, 3, 2, 1, 0],
    "repeated": [1, 1, 2, 2, 3, 3],
    "two levels": pd.MultiIndex.from_product([["a", "b"], [1, 2, 3]]),
    "dates": pd.date_range("2020-01-01", periods=6),
}


@pytest.mark.parametrize("context", [(), ("given",)], ids=["vae", "conditional"])
def test_tables_that_are_returned_have_the_index_of_their_source(context):
    values = {"a": [1.5, None, -2.5, 3.25, 0.5, 0.0], "b": [0.5, -0.25, None, 2.0, 1.0, 9.0]}
    frame = pd.DataFrame(values | {"given": [*"ssttss"]})
    data = pv.data.open(frame, context=context)
    torch.manual_seed(0)
    vae = pv.suggest(data, latent_dim=2, hidden=[8], show=False)
    numbers = vae.reconstruct(frame)
    for name, index in INDICES.items():
        table = frame.set_axis(index, axis="index")
        filled = vae.impute(table, num_samples=2)
        drawn = vae.impute(table, num_samples=2, draws=True)
        for found in (vae.reconstruct(table), filled, *drawn):
            assert found.index.equals(table.index), name
        np.testing.assert_array_equal(vae.reconstruct(table)["a"], numbers["a"])


def test_the_most_probable_level_is_returned():
    """The mean of codes of a category is another level: here most rows are level 0 or 2."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"level": rng.choice(["a", "b", "c"], 400, p=[0.55, 0.05, 0.4])})
    frame["b"] = rng.normal(size=400)
    vae = trained(frame, epochs=5)
    assert set(vae.reconstruct(frame)["level"]) <= {"a", "c"}


@pytest.mark.parametrize("kind", ["real", "positive", "date"])
@pytest.mark.parametrize("c", [8.0, 1 / 8])
def test_log_p_is_in_the_unit_of_the_data(kind, c):
    """The scaled column is fitted from the same seed, so all numbers of the networks are equal."""
    rng = np.random.default_rng(0)
    numbers = {"real": rng.normal(size=100), "positive": 100 * rng.lognormal(size=100)}.get(kind)
    days, others = rng.integers(0, 100, 100) * 8, rng.normal(size=100)

    def table(factor):
        if kind == "date":
            scaled = pd.Timestamp(2020, 1, 1) + pd.to_timedelta(days * factor, unit="D")
        else:
            scaled = numbers * factor
        return pd.DataFrame({"a": scaled, "b": others > 0.3, "c": others})

    assert pv.data.open(table(c)).schema.columns[0].kind == kind
    first, second = (
        pv.evaluate(trained(t, epochs=2), t, num_samples=10).log_likelihood
        for t in (table(1.0), table(c))
    )
    # The logarithm of a positive column is shifted, which is exact up to float32.
    atol = 1e-3 if kind == "positive" else 1e-5
    np.testing.assert_allclose(second, first - math.log(c), atol=atol)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("guide", GUIDES)
def test_priors_and_guides_by_name(prior, guide):
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    vae = trained(x, prior=prior, guide=guide)
    assert np.isfinite(pv.evaluate(vae, x, num_samples=4).elbo).all()


@pytest.mark.parametrize("kind", ["missing", "counts", "positive"])
@pytest.mark.parametrize("latent_dim", [2, [3, 2]], ids=str)
def test_pseudo_inputs_of_every_kind_of_column_have_finite_gradients(kind, latent_dim):
    """Also those that an optimizer has moved out of the range of the data."""
    rng = np.random.default_rng(0)
    x = rng.poisson(2.0, (40, 3)).astype(np.float32) + (0 if kind == "counts" else 0.5)
    if kind == "missing":
        x[rng.random(x.shape) < 0.3] = np.nan
    names = {"missing": "real", "counts": "count"}
    data = pv.data.open(
        pd.DataFrame(x, columns=["a", "b", "c"]),
        columns=dict.fromkeys("abc", names.get(kind, kind)),
    )
    torch.manual_seed(0)
    vae = pv.suggest(data, latent_dim=latent_dim, hidden=[4], prior="vamp", show=False)
    pseudo_inputs = vae.parts["prior"].raw_pseudo_inputs
    assert pseudo_inputs.isfinite().all()
    for moved in (0.0, 4.0):
        pseudo_inputs.data -= moved
        vae.zero_grad()
        Trace_ELBO().differentiable_loss(vae.model, vae.guide, data[:]).backward()
        assert all(p.grad.isfinite().all() for p in vae.parameters() if p.grad is not None)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihoods_of_arrays_by_name(likelihood):
    x = torch.randint(0, 2, (32, 1, 4, 4)).float()
    vae = trained(x.numpy(), likelihood=likelihood)
    assert np.isfinite(pv.evaluate(vae, x, num_samples=4).elbo).all()


def test_unknown_names_are_listed():
    x = np.zeros((4, 2)) + np.arange(4)[:, None] / 3 - 1
    for name, table in (("prior", PRIORS), ("guide", GUIDES)):
        with pytest.raises(
            DataError, match=f"unknown {name} 'none'; expected one of {next(iter(table))}"
        ):
            pv.suggest(x, show=False, **{name: "none"})


def test_the_printed_code_builds_the_vae(capsys):
    frame = pd.DataFrame(random_table(2)[0])
    torch.manual_seed(0)
    vae = pv.suggest(frame, hidden=[8])
    code = capsys.readouterr().out
    names = {
        name: getattr(pv, name) for name in ("VAE", "priors", "likelihoods", "guides", "networks")
    }
    torch.manual_seed(0)
    exec(code, {**names, "pv": pv, "torch": torch}, scope := {})
    built = scope["vae"]
    x = vae.schema.read(frame)[:]
    built.load_state_dict(vae.state_dict())
    with torch.no_grad():
        assert torch.equal(built.encode(x).mean, vae.encode(x).mean)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (1, 32, 32)], ids=str)
def test_the_encoder_of_arrays_with_missing_values_does_not_depend_on_their_unit(shape):
    """Shift and unit of the data are in the parts, so latents of scaled data are the same."""
    x = np.random.default_rng(0).normal(size=(40, *shape)).astype(np.float32)
    x[np.random.default_rng(1).random(x.shape) < 0.2] = np.nan
    means = []
    for scaled in (x, 1024 * x + 512 * 1024):
        torch.manual_seed(0)
        vae = pv.suggest(scaled, latent_dim=2, show=False)
        with torch.no_grad():
            means.append(vae.encode(torch.from_numpy(scaled)).mean)
    torch.testing.assert_close(means[0], means[1], atol=2e-2, rtol=0)
    assert means[0].abs().max() < 20
