"""The depth of images: a grid of files, written here byte by byte, of 8 and of 16 bits.

Pillow decodes colours of 16 bits in modes of 8 bits, by their high byte. So the grid has each
container, each set of channels, and both depths; a file is read exactly or refused.
"""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import pyro_vae as pv
from pyro_vae.data import DataError

HEIGHT, WIDTH = 5, 3
CHANNELS = {"grey": 1, "grey and alpha": 2, "colour": 3, "colour and alpha": 4}
PNG_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def png(pixels, bits):
    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, bits, PNG_TYPES[channels], 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(pixels, bits, order="<"):
    height, width, channels = pixels.shape
    data = pixels.astype(f"{order}u{bits // 8}").tobytes()
    end = 8 + len(data) + len(data) % 2
    lists = {258: [bits] * channels, 338: [2] * (channels in (2, 4))}
    photometric = 2 if channels > 2 else 1
    values = {256: [width], 257: [height], 259: [1], 262: [photometric], 273: [8]}
    values |= {277: [channels], 278: [height], 279: [len(data)], 284: [1]} | lists
    entries, tail = b"", b""
    place = end + 2 + 12 * sum(map(bool, values.values())) + 4
    for tag, value in sorted(values.items()):
        if not value:
            continue
        kind, code = (4, "I") if tag in (273, 279) else (3, "H")
        packed = struct.pack(f"{order}{len(value)}{code}", *value)
        if len(packed) > 4:
            tail, packed = tail + packed, struct.pack(f"{order}I", place + len(tail))
        entries += struct.pack(f"{order}HHI", tag, kind, len(value)) + packed.ljust(4, b"\0")
    count = struct.pack(f"{order}H", len(entries) // 12)
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, end)
    return start + data.ljust(end - 8, b"\0") + count + entries + bytes(4) + tail


def big_endian(pixels, bits):
    return tiff(pixels, bits, ">")


WRITERS = {"png": png, "tif": tiff, "tiff": big_endian}


def of_depth(bits, channels):
    """Return pixels; opaque, so that the other channels are seen as they are."""
    shape = (HEIGHT, WIDTH, channels)
    pixels = np.random.default_rng(channels).integers(0, 2**bits, shape)
    if channels in (2, 4):
        pixels[..., -1] = 2**bits - 1
    return pixels


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("name", CHANNELS)
def test_an_image_of_8_bits_is_read_exactly_and_one_of_16_is_refused(name, ending, tmp_path):
    channels = CHANNELS[name]
    for bits in (8, 16):
        pixels = of_depth(bits, channels)
        path = tmp_path / f"{bits}.{ending}"
        path.write_bytes(WRITERS[ending](pixels, bits))
        if bits == 8:
            seen = pixels[..., : 1 if channels < 3 else 3].transpose(2, 0, 1)
            assert torch.equal(pv.data.open(path)[0] * 255, torch.from_numpy(seen).float())
            continue
        try:
            Image.open(path).close()
        except OSError:  # Pillow does not know this layout either
            expected = "not an image"
        else:
            expected = r"more than 8 bits \(16 in a channel\); expected 8 bits. Scale and save"
        with pytest.raises(DataError, match=expected):
            pv.data.open(path)


def test_an_image_of_another_format_is_refused_by_name(tmp_path):
    """Their depth is not examined: a portable pixmap of 16 bits is read by its high byte, too."""
    pixels = of_depth(16, 3)
    path = tmp_path / "a.png"
    path.write_bytes(b"P6 %d %d 65535\n" % (WIDTH, HEIGHT) + pixels.astype(">u2").tobytes())
    with pytest.raises(DataError, match="of the format PPM; expected PNG, JPEG"):
        pv.data.open(path)
