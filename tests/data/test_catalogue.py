"""Known datasets are read from folders, replaced with a warning, and refused if damaged."""

import functools
import gzip
import hashlib
import struct

import numpy as np
import pytest
import scipy.io
import torch

import pyro_vae as pv
from pyro_vae.data import catalogue
from pyro_vae.data.catalogue import DataWarning
from pyro_vae.data.download import DataNotFoundError
from pyro_vae.data.errors import DataError

KNOWN = dict(catalogue.CONTENT)


@pytest.fixture
def no_network(monkeypatch):
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")


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


@pytest.fixture(autouse=True)
def _free_content(request, monkeypatch):
    """Accept the made-up files of these tests."""
    if "mnist_root" not in request.fixturenames:
        monkeypatch.setattr(catalogue, "CONTENT", {})


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
    named = r"t10k-labels-idx1-ubyte is damaged: expected numbers 0\.\.9"
    with pytest.raises(DataError, match=named):
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


def test_numbers_of_another_file_are_refused(mnist_folder, monkeypatch):
    raw = mnist_folder / "MNIST" / "raw"
    keys = {"train-images-idx3": "train images", "t10k-labels-idx1": "test labels"}
    for name, key in keys.items():
        content = {f"MNIST {key}": hashlib.sha256(bytes(60_000 * 784)).hexdigest()}
        if "labels" in key:
            content = {f"MNIST {key}": hashlib.sha256(bytes(10_000)).hexdigest()}
        monkeypatch.setattr(catalogue, "CONTENT", content)
        assert len(pv.data.mnist(root=mnist_folder)[1]) == 10_000
        path = raw / f"{name}-ubyte"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(pv.data.DataError, match=f"not those of MNIST {key}"):
            pv.data.mnist(root=mnist_folder)


def test_every_file_has_a_hash():
    kinds = [
        f"{name} {split} {what}"
        for name in ("MNIST", "FashionMNIST")
        for split in ("train", "test")
        for what in ("images", "labels")
    ]
    kinds += ["Frey Face", *(f"static MNIST {key}" for key in ("train", "valid", "test"))]
    assert set(KNOWN) == set(kinds)
    assert all(len(value) == 64 or value.startswith("sums ") for value in KNOWN.values())


def test_other_images_than_those_of_fashion_are_refused(mnist_folder, monkeypatch):
    (mnist_folder / "MNIST").rename(mnist_folder / "FashionMNIST")
    monkeypatch.setattr(catalogue, "CONTENT", {k: KNOWN[k] for k in KNOWN if "Fashion" in k})
    with pytest.raises(DataError, match="not those of FashionMNIST train images"):
        pv.data.fashion_mnist(root=mnist_folder)


def test_sums_of_pixels_and_of_their_squares_tell_images_apart():
    x = torch.randint(0, 256, (10, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
    sums = catalogue._content(x, "sums ")
    assert sums == f"sums {int(x.long().sum())} {int(x.long().square().sum())}"
    changed = x.clone()
    changed[0, 0, :2] += torch.tensor([1, 255], dtype=torch.uint8)  # the same sum of pixels
    assert catalogue._content(changed, "sums ") != sums
    # The published mean and standard deviation of the training images, divided by 255.
    total, squares = map(int, KNOWN["FashionMNIST train images"].split()[1:])
    count = 60_000 * 784
    assert total / count / 255 == pytest.approx(0.28604059698879553, rel=1e-14)
    variance = squares / count / 255**2 - (total / count / 255) ** 2
    assert variance**0.5 == pytest.approx(0.3530242445149223, rel=1e-14)
