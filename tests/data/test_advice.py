"""Objects that are no data are refused with a conversion that works."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv

X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
FRAME = pd.DataFrame(X.numpy(), columns=["a", "b"])

# The object, the words of the advice, and the conversion that it names.
OBJECTS = {
    "lazy frame": (pl.from_pandas(FRAME).lazy(), r"\.collect\(\)", lambda x: x.collect()),
    "dict": (FRAME.to_dict("list"), r"pandas\.DataFrame", pd.DataFrame),
    "list of dicts": (FRAME.to_dict("records"), r"pandas\.DataFrame", pd.DataFrame),
    "list of numbers": (X.tolist(), r"numpy\.array", np.array),
    "list of tensors": ([*X], r"torch\.stack", torch.stack),
    "dataset of torch": (
        TensorDataset(X),
        r"torch\.utils\.data\.DataLoader",
        lambda x: DataLoader(x, batch_size=4),
    ),
}


def vae():
    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(1),
        pv.likelihoods.Normal(pv.networks.MLP(1, [4], 2)),
        pv.guides.DiagonalNormal(pv.networks.MLP(2, [4], 2)),
    )


@pytest.mark.parametrize("name", OBJECTS)
def test_advice_for_other_objects_works(name):
    x, words, convert = OBJECTS[name]
    pair = vae()
    right = pv.evaluate(pair, X, num_samples=2).log_likelihood
    for call in (
        lambda: pv.evaluate(pair, x, num_samples=2),
        lambda: pv.fit(pair, x, epochs=1),
        lambda: pair.encode(x),
        lambda: pv.data.open(x),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    found = convert(x)
    if isinstance(found, np.ndarray):
        found = found.astype(np.float32)
    np.testing.assert_array_equal(pv.evaluate(pair, found, num_samples=2).log_likelihood, right)


def test_series_become_frames():
    for series in (FRAME["a"], pl.Series("a", X[:, 0].numpy())):
        with pytest.raises(ValueError, match=r"call \.to_frame\(\) of a series"):
            pv.evaluate(vae(), series)
        assert pv.data.open(series.to_frame()).schema.names() == ("a",)


def test_latents_are_of_tensors_and_datasets_say_so(tmp_path):
    data = pv.data.Dataset(X)
    with pytest.raises(pv.PairError, match=r"x\[:\] has all of its rows"):
        vae().encode(data)
    assert torch.equal(vae().encode(data[:]).mean, vae().encode(X).mean)
    with pytest.raises(pv.PairError, match="pass its batches one after another"):
        vae().encode(DataLoader(TensorDataset(X)))
    np.save(tmp_path / "x.npy", X.numpy())
    with pytest.raises(ValueError, match=r"pv\.data\.open\(path\) reads a file"):
        pv.evaluate(vae(), str(tmp_path / "x.npy"))
    assert torch.equal(pv.data.open(tmp_path / "x.npy")[:], X)
