"""Folders and lists of images: pixels, classes, sizes, and files that cannot be read."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import pyro_vae as pv
from pyro_vae.data import DataError, DataWarning
from pyro_vae.data.sources import images

HEIGHT, WIDTH = 6, 4


def grey(count=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH), dtype=np.uint8)


def colour(count=5, seed=0):
    shape = (count, HEIGHT, WIDTH, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(folder, pixels, ending=".png", **options):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03}{ending}" for i in range(len(pixels))]
    for path, picture in zip(paths, pixels, strict=True):
        Image.fromarray(picture).save(path, **options)
    return paths


@pytest.fixture(params=["in memory", "from files"])
def anywhere(request, monkeypatch):
    if request.param == "from files":
        monkeypatch.setattr(images, "IN_MEMORY", 0)


# -- pixels ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp", ".WEBP"])
@pytest.mark.parametrize("make", [grey, colour])
def test_pixels_are_those_of_the_files(make, ending, tmp_path):
    pixels = make()
    options = {"lossless": True} if ending == ".WEBP" else {}
    paths = write(tmp_path, pixels, ending, **options)
    expected = torch.from_numpy(pixels)
    expected = expected[:, None] if make is grey else expected.permute(0, 3, 1, 2)
    for source in (tmp_path, str(tmp_path), paths, tuple(map(str, paths))):
        data = pv.data.open(source)
        assert data.event_shape == data.schema.event_shape == expected.shape[1:]
        assert torch.equal(data[:], expected / 255)
        assert torch.equal(data.schema.restore(data[:]), expected)
    assert torch.equal(pv.data.open(paths[3])[:], expected[3:4] / 255)


@pytest.mark.usefixtures("anywhere")
def test_folders_are_classes(tmp_path):
    for number, name in enumerate(["zebra", "ant", "cat"]):
        write(tmp_path / name / "more", grey(2 + number, number))
    (tmp_path / "ant" / "more" / "._000.png").write_bytes(b"resource fork")
    (tmp_path / "notes.txt").write_text("no image")
    data = pv.data.open(tmp_path)
    assert data.schema.class_names == ("ant", "cat", "zebra")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert data.class_names == data.schema.class_names
    assert len(data.class_names) == 3
    assert torch.equal(data[:3][:, 0] * 255, torch.from_numpy(grey(3, 1)).float())
    shutil.rmtree(tmp_path / "ant")
    assert data.schema.read(tmp_path).labels.tolist() == [1, 1, 1, 1, 2, 2]
    write(tmp_path / "dog", grey(1))
    with pytest.raises(DataError, match=r"the class 'dog' is unknown; expected .*'ant', 'cat'"):
        data.schema.read(tmp_path)
    write(tmp_path, grey(1))
    assert pv.data.open(tmp_path).labels is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation, tmp_path):
    marked = np.zeros((16, 8), np.uint8)
    marked[:4, :4] = 255  # the top left corner of the upright picture
    turned = {
        1: marked, 2: marked[:, ::-1], 3: marked[::-1, ::-1], 4: marked[::-1], 5: marked.T,
        6: np.rot90(marked), 7: marked[::-1, ::-1].T, 8: np.rot90(marked, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.ascontiguousarray(turned[orientation]))
    picture.save(tmp_path / "a.png", exif=exif)
    assert torch.equal(pv.data.open(tmp_path).values[0, 0], torch.from_numpy(marked))


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rgba[:, :2] = (200, 100, 50, 255)
    picture = Image.fromarray(rgba)
    picture.save(tmp_path / "rgba.png")
    picture.convert("LA").save(tmp_path / "la.png")
    palette = Image.fromarray(rgba[..., :3]).quantize(2)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((3, 0)))
    grey_alpha, of_palette, of_rgba = pv.data.open(tmp_path).values
    assert of_rgba[:, 0, 0].tolist() == of_palette[:, 0, 0].tolist() == [200, 100, 50]
    assert grey_alpha[:, 0, 0].unique().numel() == 1
    assert all((x[:, :, 2:] == 255).all() for x in (grey_alpha, of_palette, of_rgba))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_of_8_bits_are_converted(mode, tmp_path):
    picture = Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).convert(mode)
    ending = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    picture.save(tmp_path / f"a.{ending}")
    data = pv.data.open(tmp_path)
    assert (data.values == 255).all()
    assert data.event_shape == (1, 8, 8)


def test_channels_are_grey_if_all_images_are(tmp_path):
    pixels = np.repeat(grey()[..., None], 3, -1)  # grey, saved as RGB
    write(tmp_path, pixels)
    assert pv.data.open(tmp_path).event_shape == (1, HEIGHT, WIDTH)
    as_colour = pv.data.open(tmp_path, channels="colour")
    assert torch.equal(as_colour.values, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    Image.fromarray(colour()[0]).save(tmp_path / "004.png")
    assert pv.data.open(tmp_path).event_shape == (3, HEIGHT, WIDTH)
    converted = pv.data.open(tmp_path, channels="grey")
    expected = np.array(Image.fromarray(colour()[0]).convert("L"))
    assert torch.equal(converted.values[4, 0], torch.from_numpy(expected))


def test_a_colour_image_outside_the_sample_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "SAMPLED", 2)
    write(tmp_path, grey())
    schema = pv.data.open(tmp_path).schema
    Image.fromarray(colour()[0]).save(tmp_path / "002.png")
    for read in (pv.data.open, schema.read):
        with pytest.raises(DataError, match=r"002.png: in colour; .* channels='colour'"):
            read(tmp_path)


@pytest.mark.parametrize("sampled", [2, 64])
def test_mixed_sizes_are_named_and_resized(sampled, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "SAMPLED", sampled)
    write(tmp_path, grey())
    schema = pv.data.open(tmp_path).schema
    Image.fromarray(np.full((12, 12), 7, np.uint8)).save(tmp_path / "002.png")
    with pytest.raises(DataError, match=r"6 x 4 \(4\), 12 x 12 \(1\).* size=64"):
        pv.data.open(tmp_path)
    with pytest.raises(DataError, match=r"6 x 4 pixels, got .*12 x 12 \(1\)"):
        schema.read(tmp_path)
    data = pv.data.open(tmp_path, size=(HEIGHT, WIDTH))
    kept = [0, 1, 3, 4]
    assert torch.equal(data.values[kept, 0], torch.from_numpy(grey()[kept]))
    assert (data.values[2] == 7).all()
    assert pv.data.open(tmp_path, size=5).event_shape == (1, 5, 5)
    assert torch.equal(data.schema.read(tmp_path)[:], data[:])


def test_resizing_keeps_the_aspect_ratio(tmp_path):
    pixels = np.zeros((20, 60), np.uint8)
    pixels[:, 14:46] = 255
    write(tmp_path, [pixels])
    assert (pv.data.open(tmp_path, size=10).values == 255).all()


# -- files that cannot be read ---------------------------------------------------------------------


def png(path, pixels):
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def corrupt(path):
    data = bytearray(png(path, grey(1)[0].repeat(30, 0)))
    place = data.index(b"IDAT") + 8
    data[place : place + 20] = bytes(20)
    path.write_bytes(data)


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:1500])


def frames(path):
    pictures = [Image.fromarray(x) for x in grey(3)]
    pictures[0].save(path, "TIFF", save_all=True, append_images=pictures[1:])


CARELESS = {
    "corrupt": (corrupt, "a.png", ".+"),
    "truncated": (truncated, "a.jpg", "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "a.png", "not an image, empty, or damaged"),
    "text": (lambda path: path.write_text("hello"), "a.bmp", "not an image"),
    "16 bits": (
        lambda path: Image.fromarray(grey(1)[0].astype(np.uint16) * 257).save(path),
        "a.png", "more than 8 bits",
    ),
    "floats": (
        lambda path: Image.fromarray(grey(1)[0].astype(np.float32)).save(path),
        "a.tif", "more than 8 bits",
    ),
    "a stack": (frames, "a.tif", "3 pictures in one file"),
}  # fmt: skip


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("kind", CARELESS)
def test_a_careless_file_among_many_is_named(kind, tmp_path):
    make, name, reason = CARELESS[kind]
    for label in ("one", "two"):
        write(tmp_path / label, grey(20))
    make(tmp_path / "two" / name)
    message = rf"cannot read 1 of 41 images: .*two.{name}: .*{reason}.* skip_unreadable=True"
    with pytest.raises(DataError, match=message):
        pv.data.open(tmp_path)
    with pytest.warns(DataWarning, match=rf"two.{name}: .*{reason}.*left out"):
        data = pv.data.open(tmp_path, skip_unreadable=True)
    expected = torch.from_numpy(np.concatenate([grey(20), grey(20)]))[:, None]
    assert torch.equal(data[:], expected / 255)
    assert data.labels.tolist() == [0] * 20 + [1] * 20


def test_many_careless_files_are_counted(tmp_path):
    for number in range(100):
        (tmp_path / f"{number:03}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot read 64 of 100 .*000.png.*and 54 more"):
        pv.data.open(tmp_path, skip_unreadable=True)


def test_sources_without_images_are_refused(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "a"):
        with pytest.raises(DataError, match=r"no images in this folder; expected files .png"):
            pv.data.open(folder)
    with pytest.raises(DataError, match=r"missing.png: no such file"):
        pv.data.open([*write(tmp_path, grey(1)), tmp_path / "missing.png"])
    with pytest.raises(ValueError, match="channels must be 'grey' or 'colour'"):
        pv.data.open(tmp_path, channels="blue")
    with pytest.raises(ValueError, match=r"size must be .*whole number"):
        pv.data.open(tmp_path, size=0)
    with pytest.raises(DataError, match="size must be one number or"):
        pv.data.open(tmp_path, size=(1, 2, 3))


def test_a_file_that_is_removed_later_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "IN_MEMORY", 0)
    paths = write(tmp_path, grey())
    data = pv.data.open(tmp_path)
    paths[3].unlink()
    assert torch.equal(data[:3][:, 0], torch.from_numpy(grey()[:3]) / 255)
    with pytest.raises(DataError, match=r"003.png cannot be read"):
        data[2:]


# -- training --------------------------------------------------------------------------------------


def vae(schema):
    torch.manual_seed(0)
    mlp = pv.networks.MLP
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.ContinuousBernoulli(mlp(2, [4], (1, HEIGHT, WIDTH))),
        pv.guides.DiagonalNormal(mlp((1, HEIGHT, WIDTH), [4], 4)),
        schema=schema,
    )


def test_files_train_and_score_as_the_pixels_in_memory(tmp_path, monkeypatch):
    write(tmp_path, grey(40))
    whole = pv.data.open(tmp_path)
    monkeypatch.setattr(images, "IN_MEMORY", 0)
    files = pv.data.open(tmp_path)
    assert isinstance(files.values, images.ImageFiles)
    found = []
    for data in (whole, files):
        train, validation = data.hold_out(8, seed=3)
        pair = vae(data.schema)
        run = {"validation": validation, "compile": False, "progress": False}
        fit = pv.fit(pair, train, epochs=2, batch_size=8, **run)
        scores = pv.evaluate(pair, validation, num_samples=5)
        found.append(([e["validation_elbo"] for e in fit.history], scores.elbo.tolist()))
    assert found[0] == found[1]
    pair.save(tmp_path / "model")
    loaded = pv.load(tmp_path / "model")
    assert loaded.schema.build_arguments == pair.schema.build_arguments
    assert torch.equal(loaded.schema.read(str(tmp_path))[:], whole[:])
