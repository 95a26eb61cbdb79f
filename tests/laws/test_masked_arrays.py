"""Masked entries of a numpy.ma.MaskedArray are missing values, as NaN is, in every function."""

import functools

import numpy as np
import pytest
import torch
from scipy import sparse

import pyro_vae as pv
from pyro_vae.data.errors import DataError

WIDTH = 4
X = np.random.default_rng(0).normal(size=(30, WIDTH)).astype(np.float32)
HIDDEN = X > 1
NAN = np.where(HIDDEN, np.float32(np.nan), X)
quietly = functools.partial(pv.fit, epochs=2, batch_size=10, progress=False)


def masked(x=X):
    """Return an array with values, which must have no effect, below its mask."""
    return np.ma.masked_array(np.where(HIDDEN, 10, x).astype(x.dtype), mask=HIDDEN)


def vae(missing):
    torch.manual_seed(0)
    likelihood = pv.likelihoods.Normal(pv.networks.MLP(2, [8], WIDTH))
    encoder = pv.networks.MLP(2 * WIDTH if missing else WIDTH, [8], 4)
    if missing:
        likelihood = pv.likelihoods.Missing(likelihood)
        encoder = pv.networks.WithMask(encoder)
    return pv.VAE(pv.priors.StandardNormal(2), likelihood, pv.guides.DiagonalNormal(encoder))


def of_estimator(x):
    from pyro_vae.sklearn import VAE

    estimator = VAE(latent_dim=2, epochs=1, random_state=0)
    return estimator.fit(x).transform(x)


CALLS = {
    "fit": lambda x: quietly(vae(True), x).history[-1]["train_elbo"],
    "validation": lambda x: quietly(vae(True), NAN, validation=x).history[-1]["validation_elbo"],
    "evaluate": lambda x: pv.evaluate(vae(True), x, num_samples=5).elbo,
    "encode": lambda x: vae(True).encode(x).mean.detach().numpy(),
    "impute": lambda x: vae(True).impute(x, num_samples=1).numpy(),
    "as_tensor": lambda x: pv.data.as_tensor(x).numpy(),
    "open": lambda x: pv.data.open(x)[:].numpy(),
    "sklearn": of_estimator,
}


@pytest.mark.parametrize("call", CALLS)
def test_masked_entries_are_missing(call):
    np.testing.assert_array_equal(CALLS[call](masked()), CALLS[call](NAN))


REFUSED = {
    "fit": lambda x: quietly(vae(False), x),
    "evaluate": lambda x: pv.evaluate(vae(False), x, num_samples=2),
    "encode": lambda x: vae(False).encode(x),
}


@pytest.mark.parametrize("call", REFUSED)
def test_a_model_without_missing_values_refuses_them(call):
    with pytest.raises(pv.PairError, match="NaN"):
        REFUSED[call](masked())


@pytest.mark.parametrize("call", [pv.data.as_tensor, pv.data.open, of_estimator])
def test_masked_whole_numbers_are_refused(call):
    with pytest.raises(DataError, match=rf"{HIDDEN.sum()} entries .* are masked"):
        call(masked((X * 3).astype(np.int64)))


def test_an_array_of_which_nothing_is_masked_is_an_array():
    np.testing.assert_array_equal(pv.data.as_tensor(np.ma.masked_array(X)).numpy(), X)


def test_a_sparse_matrix_of_real_numbers_is_the_dense_array():
    rows = X - 1.0  # of which the sums are negative
    scores = [
        pv.evaluate(vae(False), x, num_samples=5).elbo for x in (rows, sparse.csr_array(rows))
    ]
    np.testing.assert_array_equal(*scores)
