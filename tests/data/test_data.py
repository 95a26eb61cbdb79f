"""Data sets: drawn as they should be, read from what is there, and refused when damaged."""

import functools
import gzip
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

import pyro_vae as pv
from pyro_vae.data.binarization import bernoulli
from pyro_vae.data.catalogue import DataWarning
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.download import DOWNLOAD_TIMEOUT, DataNotFoundError
from pyro_vae.data.errors import DataError


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture
def no_network(monkeypatch):
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")


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
    assert torch.equal(data[7], data[:][7])
    assert not torch.equal(data[:], Dataset(grey(100), binarization="dynamic", seed=4)[:])


def test_the_fixed_draws_have_the_pixels_probabilities_in_every_chunk():
    data = Dataset(torch.full((9000, 16), 51, dtype=torch.uint8), binarization="dynamic")
    for rows in (slice(4096), slice(4096, 8192), slice(8192, None)):
        count = data[rows].numel()
        assert abs(data[rows].double().mean() - 0.2) < 5 * (0.2 * 0.8 / count) ** 0.5
    assert not torch.equal(data[:808], data[4096:4904])


def test_feeding():
    pixels = torch.tensor([[0, 127, 128, 255]], dtype=torch.uint8)
    assert Dataset(pixels, binarization="threshold")[:].tolist() == [[0, 0, 1, 1]]
    assert Dataset(pixels)[:][0, 3] == 1
    floats = torch.rand(5, 3, dtype=torch.float64)
    assert torch.equal(pv.data.as_dataset(floats)[:], floats)
    assert pv.data.as_dataset(floats[:, ::2].numpy()).values.dtype == torch.float64
    missing = torch.tensor([[torch.nan, 1.0]])
    assert torch.equal(pv.data.as_dataset(missing)[:].isnan(), missing.isnan())


def test_as_dataset_takes_arrays_that_torch_cannot_hold():
    expected = torch.arange(6.0, dtype=torch.float64).view(3, 2)
    foreign = expected.numpy().astype(">f8")
    frozen = expected.numpy().copy()
    frozen.flags.writeable = False
    reversed_ = expected.flip(0).numpy().copy()[::-1]
    for array in (foreign, frozen, reversed_):
        assert torch.equal(pv.data.as_dataset(array)[:], expected)
    data = Dataset(expected)
    assert pv.data.as_dataset(data) is data
    assert data.to("cpu") is data


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


def test_hold_out_takes_a_share():
    for num_data, share, expected in [
        (60_000, 1 / 12, 5000),
        (4000, 1 / 12, 333),
        (10, 0.1, 1),
        (10, np.float32(0.3), 3),
        (10, 1e-9, 1),
        (10, 1 - 1e-9, 9),
        (2, 0.5, 1),
        (10, np.int64(3), 3),
    ]:
        train, validation = Dataset(torch.zeros(num_data, 1)).hold_out(share)
        assert (len(train), len(validation)) == (num_data - expected, expected)


@pytest.mark.parametrize(
    "count",
    [True, False, 0, -1, 0.0, 1.0, -0.1, 3.0, float("nan"), float("inf"), None, "3", np.float64(1)],
)
def test_hold_out_says_what_it_takes(count):
    sentence = r"cannot hold out .* of 10 data: expected a whole number from 1 to 9, or a share"
    with pytest.raises(DataError, match=sentence):
        Dataset(torch.zeros(10, 1)).hold_out(count)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Dataset(torch.zeros(0, 3)), "empty"),
        (lambda: Dataset(torch.zeros(3, 2), binarization="dynamic"), "needs 8-bit pixels"),
        (lambda: Dataset(torch.zeros(3, 2), binarization="maybe"), "unknown binarize='maybe'"),
        (lambda: Dataset(torch.zeros(3, 2, dtype=torch.int32)), "8-bit pixels or floats"),
        (
            lambda: Dataset(torch.zeros(3, 2), labels=torch.zeros(2)),
            r"labels have shape \(2,\); expected \(3,\)",
        ),
        (lambda: Dataset(torch.full((3, 2), torch.inf)), "infinite"),
        (lambda: pv.data.as_dataset(torch.zeros(3, 2).byte()), "divide bytes 0..255 by 255"),
        (lambda: pv.data.as_dataset(np.zeros((3, 2), np.uint8)), "floating-point dtype, got uint8"),
        (lambda: pv.data.as_dataset(np.array([["a"]])), "floating-point dtype, got <U1"),
        (lambda: pv.data.as_dataset([[1.0]]), "got list"),
        (lambda: pv.data.load("digits"), "unknown dataset 'digits'; expected one of mnist"),
        (lambda: pv.data.mnist(binarize="sometimes"), "unknown binarize='sometimes'"),
        (lambda: pv.data.frey_face(binarize="dynamic"), "Frey Face has grey values"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(DataError, match=sentence):
        make()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("binarize", ["dynamic", "static", "threshold"])
def test_the_embedded_images_serve_and_say_so(tmp_path, binarize):
    with pytest.warns(DataWarning, match=r"mnist-5k.*not those of MNIST.*refused.*Put them there"):
        train, test = pv.data.mnist(root=tmp_path, binarize=binarize)
    assert (train.name, len(train), len(test)) == ("mnist-5k", 4000, 1000)
    assert train.event_shape == (1, 28, 28)
    assert set(test[:].unique().tolist()) == {0.0, 1.0}
    assert test.labels.bincount(minlength=10).min() > 60
    assert torch.equal(pv.data.load("mnist-5k", binarize=binarize)[1][:], test[:])
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("reason", ["refused", "download=False"])
@pytest.mark.parametrize(
    ("name", "binarize", "file"),
    [
        ("fashion-mnist", "dynamic", "FashionMNIST/raw/train-images-idx3-ubyte"),
        ("frey", "none", "frey_rawface.mat"),
        ("mnist", "static", "binarized_mnist_valid.amat"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, name, binarize, file, reason):
    (tmp_path / "MNIST").mkdir()  # who has MNIST is not given a part of it for its static draw
    with pytest.raises(FileNotFoundError) as raised:
        pv.data.load(name, binarize=binarize, root=tmp_path, download=reason == "refused")
    assert isinstance(raised.value, DataNotFoundError)
    for part in (file, str(tmp_path), reason, "Put them there"):
        assert part in str(raised.value)


def test_an_interrupted_download_leaves_no_half_file(tmp_path, monkeypatch):
    limits = []

    def download_url(url, folder):
        limits.append(socket.getdefaulttimeout())
        (Path(folder) / "frey_rawface.mat").write_bytes(b"half")
        raise TimeoutError("timed out")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download_url)
    with pytest.raises(DataNotFoundError, match="timed out"):
        pv.data.frey_face(root=tmp_path)
    assert not list(tmp_path.iterdir())
    assert limits == [pv.data.DOWNLOAD_TIMEOUT]
    assert socket.getdefaulttimeout() is None


def test_a_download_is_kept(tmp_path, monkeypatch):
    frames = np.arange(1965 * 560).astype(np.uint8).reshape(1965, 560)

    def download_url(url, folder):
        scipy.io.savemat(Path(folder) / "frey_rawface.mat", {"ff": frames.T})

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download_url)
    root = tmp_path / "new"
    train, _ = pv.data.frey_face(root=root)
    assert [path.name for path in root.iterdir()] == ["frey_rawface.mat"]
    first = np.random.default_rng(0).permutation(1965)[0]
    np.testing.assert_array_equal(train.values[0].flatten().numpy(), frames[first])


def test_a_root_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    """Nothing is written where all is there; where it is not, the reason is said."""
    np.savez(tmp_path / "frey_faces.npz", images=np.zeros((1965, 28, 20), np.uint8))

    def refuse(*args, **kwargs):
        raise PermissionError("read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)  # mode bits do not bind a superuser
    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    assert len(pv.data.frey_face(root=tmp_path)[0]) == 1765
    with pytest.warns(DataWarning, match=r"mnist-5k.*read-only file system"):
        pv.data.mnist(root=tmp_path)


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
    named = r"raw/train-images-idx3-ubyte is damaged.*\(60000, 28, 28\).*delete it and run again"
    with pytest.raises(DataError, match=named):
        pv.data.mnist(root=mnist_folder)


def test_a_class_out_of_range_is_refused(mnist_folder):
    path = mnist_folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte is damaged: numbers 0\.\.9"):
        pv.data.mnist(root=mnist_folder)


def test_static_fashion_is_one_draw(mnist_folder):
    (mnist_folder / "MNIST").rename(mnist_folder / "FashionMNIST")
    path = mnist_folder / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(idx(np.full((10_000, 28, 28), 51, np.uint8)))
    _, test = pv.data.fashion_mnist(root=mnist_folder, binarize="static")
    assert (test.name, test.binarization) == ("fashion-mnist", "static")
    assert set(test[:100].unique().tolist()) == {0.0, 1.0}
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(test.draw(torch.arange(100), generator), test[:100])
    assert abs(test.mean().mean() - 0.2) < 5 * (0.2 * 0.8 / 7_840_000) ** 0.5


def test_static_mnist_keeps_its_official_split(tmp_path):
    rng = np.random.default_rng(0)
    counts = {"train": 50_000, "valid": 10_000, "test": 10_000}
    packed = {k: rng.integers(0, 256, (n, 98), dtype=np.uint8) for k, n in counts.items()}
    path = tmp_path / "binarized_mnist.npz"
    np.savez(path, **packed)
    train, test = pv.data.mnist(root=tmp_path, binarize="static")
    assert (len(train), len(test), train.binarization) == (60_000, 10_000, "static")
    assert train.labels is None
    _, validation = train.hold_out(10_000)
    for data, key in ((train, "train"), (validation, "valid"), (test, "test")):
        np.testing.assert_array_equal(
            data[:7].flatten(1).numpy(), np.unpackbits(packed[key][:7], axis=1)
        )
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"binarized_mnist\.npz is damaged"):
        pv.data.mnist(root=tmp_path, binarize="static")


def test_static_mnist_is_read_from_its_text_files(tmp_path):
    row = "0 1 " * 392 + "\n"
    for key, count in (("train", 50_000), ("valid", 10_000), ("test", 10_000)):
        (tmp_path / f"binarized_mnist_{key}.amat").write_text(row * count)
    train, _ = pv.data.mnist(root=tmp_path, binarize="static")
    assert train.mean().flatten().tolist() == [0, 1] * 392
    path = tmp_path / "binarized_mnist_train.amat"
    path.write_text(row * 10 + "0 1 0")
    with pytest.raises(DataError, match=r"train\.amat is damaged.*delete it"):
        pv.data.mnist(root=tmp_path, binarize="static")


def flip_a_bit(raw):
    return raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :]


@pytest.mark.parametrize("damage", [flip_a_bit, lambda raw: raw[:-30], lambda raw: b"<html>"])
@pytest.mark.parametrize("file", ["frey_faces.npz", "frey_rawface.mat"])
def test_damaged_frames_are_refused(tmp_path, file, damage):
    frames = np.random.default_rng(0).integers(0, 256, (1965, 28, 20), dtype=np.uint8)
    np.savez_compressed(tmp_path / "frey_faces.npz", images=frames)
    columns = frames.reshape(1965, 560).T
    scipy.io.savemat(tmp_path / "frey_rawface.mat", {"ff": columns}, do_compression=True)
    for path in tmp_path.iterdir():
        if path.name != file:
            path.unlink()
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"{file} is damaged.*delete it and run again"):
        pv.data.frey_face(root=tmp_path)


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


def test_data_are_taken_from_evenly_spaced_places():
    data = Dataset(torch.arange(10.0)[:, None])
    assert data.spread(3).flatten().tolist() == [0, 3, 6]
    assert data.spread(10).flatten().tolist() == data.spread(99).flatten().tolist() == [*range(10)]
