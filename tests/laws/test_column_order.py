"""Columns with names have the same meaning in every order: right numbers, or a refusal."""

import types

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import sparse

import pyro_vae as pv

NAMES = list("abcd")
FRAME = pd.DataFrame(
    np.random.default_rng(0).normal(size=(24, 4)) + np.arange(4), columns=NAMES
).astype(np.float32)
OTHER = FRAME[list("dbca")]
CONTEXT = torch.eye(2)[torch.arange(24) % 2]
WITH_LEVELS = FRAME.assign(sex=np.arange(24) % 2 + 1)


def anndata_of(frame):
    anndata = pytest.importorskip("anndata")
    matrix = sparse.csr_array(frame.to_numpy())
    return anndata.AnnData(matrix, var=pd.DataFrame(index=list(frame.columns)))


def vae(width=4):
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.MLP(2, [4], width)),
        pv.guides.DiagonalNormal(pv.networks.MLP(width, [4], 4)),
    )


def ladder():
    return pv.LadderVAE(
        pv.priors.StandardNormal(2),
        [pv.networks.MLP(2, [4], 4)],
        pv.likelihoods.Normal(pv.networks.MLP(2, [4], 4)),
        [pv.networks.MLP(4, [4], 4), pv.networks.MLP(4, [4], 4)],
        latent_dims=[2, 2],
    )


def conditional():
    def with_y(network, size):
        return pv.networks.WithContext(network, size)

    return pv.ConditionalVAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(with_y(pv.networks.MLP(4, [4], 4), 2)),
        pv.guides.DiagonalNormal(with_y(pv.networks.MLP(6, [4], 4), 4)),
    )


def mixed():
    return pv.MixedVAE(
        pv.priors.Categorical(2),
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.MLP(4, [4], 4)),
        pv.guides.Categorical(pv.networks.MLP(4, [4], 2)),
        pv.guides.DiagonalNormal(pv.networks.MLP(4, [4], 4)),
    )


def svi():
    parts = vae()
    return pv.SVI(
        parts.model, parts.guide, torch.optim.Adam(parts.parameters(), 1e-3), Trace_ELBO()
    )


PAIRS = {
    "VAE": vae,
    "LadderVAE": ladder,
    "ConditionalVAE": conditional,
    "MixedVAE": mixed,
    "Pair": lambda: (lambda v: pv.Pair(v.model, v.guide))(vae()),
    "object": lambda: (lambda v: types.SimpleNamespace(model=v.model, guide=v.guide))(vae()),
    "SVI": svi,
}
SOURCES = {"pandas": lambda f: f, "polars": pl.from_pandas, "AnnData": anndata_of}


def elbo(pair, data):
    return float(pv.evaluate(pair, data, num_samples=2, progress=False).mean("elbo"))


def trained(pair, data, **settings):
    pv.fit(pair, data, epochs=1, progress=False, **settings)
    return pair


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", PAIRS)
def test_scores_do_not_depend_on_the_order_of_columns(kind, source):
    def given(frame):
        x = SOURCES[source](frame)
        return (x, CONTEXT) if kind == "ConditionalVAE" else x

    pair = trained(PAIRS[kind](), given(FRAME))
    assert elbo(pair, given(OTHER)) == elbo(pair, given(FRAME))


USES = {
    "encode": lambda v, x: v.encode(x).mean,
    "reconstruct": lambda v, x: v.reconstruct(x),
    "refine": lambda v, x: pv.refine(v, x).khat,
    "collapse": lambda v, x: pv.collapse(v, x).kl,
}


@pytest.mark.parametrize("use", USES)
def test_results_do_not_depend_on_the_order_of_columns(use):
    pair = trained(vae(), FRAME)
    first, second = (torch.as_tensor(USES[use](pair, x.head(4))) for x in (FRAME, OTHER))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["VAE", "LadderVAE", "MixedVAE"])
def test_saved_models_keep_the_order(kind, tmp_path):
    pair = trained(PAIRS[kind](), FRAME)
    pair.save(tmp_path / "model")
    assert elbo(pv.load(tmp_path / "model"), OTHER) == elbo(pair, FRAME)


def test_validation_data_are_read_by_name():
    torch.manual_seed(0)
    first = vae()
    torch.manual_seed(0)
    second = vae()
    histories = [
        pv.fit(pair, FRAME, validation=held_out, epochs=1, progress=False).history
        for pair, held_out in ((first, FRAME), (second, OTHER))
    ]
    assert histories[0][0]["validation_elbo"] == histories[1][0]["validation_elbo"]


def test_arrays_and_frames_without_names_are_read_by_position():
    pair = trained(vae(), FRAME)
    x = FRAME.to_numpy()
    right = elbo(pair, torch.tensor(x))
    for given in (x, pd.DataFrame(x), FRAME, pl.DataFrame(x)):
        assert elbo(pair, given) == right
    assert trained(vae(), x).schema is None
    assert trained(vae(), pd.DataFrame(x)).schema is None


def test_other_names_are_refused_and_others_ignored_with_a_warning():
    pair = trained(vae(), FRAME)
    with pytest.raises(pv.data.DataError, match=r"'a' is missing.*to_numpy"):
        elbo(pair, FRAME.rename(columns={"a": "z"}))
    with pytest.warns(pv.data.DataWarning, match="ignored: 'z'"):
        assert elbo(pair, OTHER.assign(z=1.0)) == elbo(pair, FRAME)


def test_a_failed_fit_gives_no_order():
    pair = vae(3)
    with pytest.raises(pv.PairError):
        trained(pair, FRAME)
    assert pair.schema is None


DATASETS = {
    "order": WITH_LEVELS[["sex", *"dcba"]],
    "levels": WITH_LEVELS.assign(sex=WITH_LEVELS.sex + 1),
    "names": WITH_LEVELS.rename(columns={"a": "z"}),
}


@pytest.mark.parametrize("change", DATASETS)
@pytest.mark.parametrize("model", ["suggested", "own"])
def test_datasets_of_other_columns_are_refused(change, model):
    data = pv.data.open(WITH_LEVELS)
    suggested = pv.suggest(data, latent_dim=2, hidden=[4], show=False)
    pair = suggested if model == "suggested" else trained(vae(5), data)
    with pytest.raises(pv.data.DataError, match="schema"):
        elbo(pair, pv.data.open(DATASETS[change]))
    right = elbo(pair, data)
    assert elbo(pair, pv.data.open(WITH_LEVELS)) == right
    assert elbo(pair, pv.data.open(WITH_LEVELS.head(20))) < 0  # other kinds, the same numbers
    assert elbo(pair, WITH_LEVELS) == right


def test_counts_of_other_genes_are_refused():
    data = pv.data.open(anndata_of(FRAME.abs().round()))
    pair = pv.suggest(data, latent_dim=2, hidden=[4], show=False)
    with pytest.raises(pv.data.DataError, match="another order"):
        elbo(pair, pv.data.open(anndata_of(OTHER.abs().round())))


def test_files_are_read_by_name_with_options_and_can_be_filled(tmp_path):
    pair = trained(vae(), FRAME)
    table = OTHER.assign(note=1)
    table.to_csv(tmp_path / "table.csv", index=False, sep=";", decimal=",")
    with pytest.warns(pv.data.DataWarning, match="ignored: 'note'"):
        data = pair.schema.read(tmp_path / "table.csv", decimal=",")
    torch.testing.assert_close(data[:], torch.from_numpy(FRAME.to_numpy()))
    assert data.schema.names() == tuple(NAMES)
    holes = OTHER.copy()
    holes.loc[3, "b"] = np.nan
    completed = data.schema.complete(holes, data[:])
    pd.testing.assert_frame_equal(completed, OTHER)
    assert elbo(pair, data) == pytest.approx(elbo(pair, FRAME), rel=1e-5)
