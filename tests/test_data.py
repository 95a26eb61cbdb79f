"""Data sets: drawn as they should be, read from what is there, and refused when damaged."""

import functools
import gzip
import struct

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae import data as data_module
from pyro_vae.data import DataError, Dataset, DataWarning, bernoulli


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture
def no_network(monkeypatch):
    def fail(what, get):
        raise data_module._NotFoundError(f"{what}: no network")

    monkeypatch.setattr(data_module, "_download", fail)


def grey(num_data, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (num_data, 1, 4, 4), dtype=np.uint8))


def test_draws_have_the_pixels_probabilities(generator):
    levels = torch.arange(256, dtype=torch.uint8)
    count = 40_000
    draws = bernoulli(levels.expand(count, 256), generator)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    expected = levels.double() / 255 * (1 - 2**-16)
    error = (expected * (1 - expected) / count).sqrt()
    assert ((draws.double().mean(0) - expected).abs() <= 5 * error).all()
    assert draws[:, 0].max() == 0


@pytest.mark.parametrize("lane", range(4))
def test_each_quarter_of_a_word_is_uniform_and_alone(generator, lane):
    """The four draws that share a random word have the same mean and are uncorrelated."""
    half = torch.full((50_000, 8), 128, dtype=torch.uint8)
    draws = bernoulli(half, generator).double()
    p = 128 / 255
    assert abs(draws[:, lane].mean() - p) < 5 * (p * (1 - p) / 50_000) ** 0.5
    correlations = torch.corrcoef(draws.T)[lane]
    others = torch.arange(8) != lane
    assert (correlations[others].abs() < 5 / 50_000**0.5).all()


def test_training_draws_are_fresh_and_scored_draws_are_fixed(generator):
    data = Dataset(grey(100), binarization="dynamic", seed=3)
    index = torch.arange(100)
    assert not torch.equal(data.draw(index, generator), data.draw(index, generator))
    again = Dataset(grey(100), binarization="dynamic", seed=3)
    assert torch.equal(data[:], again[:])
    order = torch.randperm(100)
    assert torch.equal(data[order], data[:][order])
    assert torch.equal(data[20:30], data[:][20:30])
    assert not torch.equal(data[:], Dataset(grey(100), binarization="dynamic", seed=4)[:])


def test_feeding():
    pixels = torch.tensor([[0, 127, 128, 255]], dtype=torch.uint8)
    assert Dataset(pixels, binarization="threshold")[:].tolist() == [[0, 0, 1, 1]]
    assert Dataset(pixels)[:][0, 3] == 1
    floats = torch.rand(5, 3, dtype=torch.float64)
    assert torch.equal(pv.data.as_dataset(floats)[:], floats)
    assert pv.data.as_dataset(floats[:, ::2].numpy()).values.dtype == torch.float64


def test_mean_and_log_odds_are_exact():
    pixels = torch.tensor([[0, 255], [51, 255]], dtype=torch.uint8)
    for binarization in ("dynamic", "none"):
        data = Dataset(pixels, binarization=binarization)
        torch.testing.assert_close(data.mean(), torch.tensor([0.1, 1.0]))
    probabilities = torch.tensor([(0.2 + 0.5) / 3, 2.5 / 3])
    torch.testing.assert_close(data.log_odds(), torch.logit(probabilities))


def test_hold_out_takes_the_last():
    data = Dataset(grey(10), torch.arange(10), binarization="dynamic")
    train, validation = data.hold_out(3)
    assert (len(train), len(validation), validation.split) == (7, 3, "validation")
    assert validation.labels.tolist() == [7, 8, 9]
    with pytest.raises(DataError, match="cannot hold out 10 of 10"):
        data.hold_out(10)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Dataset(torch.zeros(0, 3)), "empty"),
        (lambda: Dataset(torch.zeros(3, 2), binarization="dynamic"), "needs 8-bit pixels"),
        (lambda: Dataset(torch.zeros(3, 2), binarization="maybe"), "'maybe' is unknown"),
        (lambda: Dataset(torch.zeros(3, 2, dtype=torch.int32)), "8-bit pixels or floats"),
        (lambda: Dataset(torch.zeros(3, 2), labels=torch.zeros(2)), "3 data have 2 labels"),
        (lambda: Dataset(torch.full((3, 2), torch.inf)), "infinite"),
        (lambda: pv.data.as_dataset(torch.zeros(3, 2).byte()), "divide bytes 0..255 by 255"),
        (lambda: pv.data.as_dataset([[1.0]]), "got list"),
        (lambda: pv.data.load("digits"), "'digits' is unknown: choose one of mnist"),
        (lambda: pv.data.mnist(binarize="sometimes"), "'sometimes' is unknown"),
        (lambda: pv.data.frey_face(binarize="dynamic"), "Frey Face is grey"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(DataError, match=sentence):
        make()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("binarize", ["dynamic", "static", "threshold"])
def test_the_embedded_images_serve_and_say_so(tmp_path, binarize):
    with pytest.warns(DataWarning, match=r"mnist-5k.*not those of MNIST"):
        train, test = pv.data.mnist(root=tmp_path, binarize=binarize)
    assert (train.name, len(train), len(test)) == ("mnist-5k", 4000, 1000)
    assert train.event_shape == (1, 28, 28)
    assert set(test[:].unique().tolist()) == {0.0, 1.0}
    assert test.labels.bincount(minlength=10).min() > 60
    assert torch.equal(pv.data.load("mnist-5k", binarize=binarize)[1][:], test[:])
    assert not list(tmp_path.iterdir())


def test_a_failed_download_is_short_and_leaves_no_half_file(tmp_path, monkeypatch):
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    with pytest.warns(DataWarning, match="mnist-5k"):
        pv.data.mnist(root=tmp_path)
    with pytest.raises(DataError, match=r"Put frey_rawface\.mat"):
        pv.data.frey_face(root=tmp_path)
    with pytest.raises(DataError, match="FashionMNIST"):
        pv.data.fashion_mnist(root=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def idx(array):
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return header + array.tobytes()


@pytest.fixture
def mnist_folder(tmp_path):
    """Blank MNIST of full size."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 60_000), ("t10k", 10_000)):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(np.zeros((count, 28, 28), np.uint8)))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.zeros(count, np.uint8)))
    return tmp_path


def test_mnist_is_read_from_a_folder_or_the_environment(mnist_folder, monkeypatch):
    train, test = pv.data.mnist(root=mnist_folder)
    assert (train.name, len(train), len(test)) == ("mnist", 60_000, 10_000)
    monkeypatch.setenv("PYRO_VAE_DATA", str(mnist_folder))
    assert pv.data.mnist()[0].name == "mnist"


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:1_000_000], lambda raw: raw[:16], lambda raw: b"", gzip.compress]
)
def test_a_damaged_file_is_named(mnist_folder, damage):
    path = mnist_folder / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"MNIST/raw is damaged.*delete it and run again"):
        pv.data.mnist(root=mnist_folder)


def test_static_mnist_keeps_its_official_split(tmp_path):
    rng = np.random.default_rng(0)
    bits = {k: rng.random((n, 784)) < 0.2 for k, n in
            [("train", 50_000), ("valid", 10_000), ("test", 10_000)]}  # fmt: skip
    path = tmp_path / "binarized_mnist.npz"
    np.savez(path, **{key: np.packbits(value, axis=1) for key, value in bits.items()})
    train, test = pv.data.mnist(root=tmp_path, binarize="static")
    assert (len(train), len(test), train.binarization) == (60_000, 10_000, "static")
    _, validation = train.hold_out(10_000)
    np.testing.assert_array_equal(validation[:7].flatten(1).numpy(), bits["valid"][:7])
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"binarized_mnist\.npz is damaged"):
        pv.data.mnist(root=tmp_path, binarize="static")


def test_frey_face_is_split_by_the_seed(tmp_path):
    frames = np.arange(1965 * 560, dtype=np.uint32).astype(np.uint8).reshape(1965, 28, 20)
    np.savez(tmp_path / "frey_faces.npz", images=frames)
    splits = [pv.data.frey_face(root=tmp_path, seed=seed) for seed in (0, 0, 1)]
    assert [(len(a), len(b)) for a, b in splits] == [(1765, 200)] * 3
    assert torch.equal(splits[0][1][:], splits[1][1][:])
    assert not torch.equal(splits[0][1][:], splits[2][1][:])


def test_the_real_sets(mnist_root):
    load = functools.partial(pv.data.load, root=mnist_root)
    train, _ = load("mnist")
    assert train.mean().mean() == pytest.approx(0.1307, abs=1e-4)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    _, static = load("mnist", binarize="static")
    assert set(static[:].unique().tolist()) == {0.0, 1.0}
    frey, _ = load("frey")
    assert 0.4 < frey.mean().mean() < 0.8
