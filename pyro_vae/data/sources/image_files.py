"""Decode files of images by threads, as 8-bit pixels of the size and channels of a schema."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pyro_vae.arguments import setting
from pyro_vae.data.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    from pyro_vae.data.sources.images import ImageSchema

# Formats whose depth `_bits` reads. Others, such as JPEG 2000, may lose bits without notice.
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "BMP", "GIF")
BITS_PER_SAMPLE = 258  # tag of TIFF
RUN = 16  # files that a thread decodes in turn
NUM_THREADS = min(8, os.cpu_count() or 1)


class OtherSizeError(DataError):
    """An image has another size than the schema."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__(f"the size is {size[1]} x {size[0]} pixels")
        self.size = size


def decoded(
    paths: Sequence[Path],
    schema: "ImageSchema",
    rows: np.ndarray | None,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Exception | None]:
    """Decode images by threads into rows of pixels, if given; return the error of each image."""

    def decode(start: int) -> list[Exception | None]:
        errors: list[Exception | None] = []
        for i in range(start, min(start + RUN, len(paths))):
            try:
                pixels = _pixels(opened(paths[i]), schema)
            except Exception as error:  # decoders raise errors of many classes
                errors.append(error)
                continue
            if rows is not None:
                rows[i] = pixels
            errors.append(None)
        return errors

    with ThreadPoolExecutor(NUM_THREADS, "pyro_vae") as pool:
        runs = pool.map(decode, range(0, len(paths), RUN))
        found: list[Exception | None] = []
        for errors in runs:
            found += errors
            advance(len(errors))
        return found


def opened(path: Path) -> "Image":
    """Return the picture in a file, upright and on white, as 8-bit grey or colour."""
    from PIL import Image, ImageOps

    image: Image.Image
    with Image.open(path) as image:
        count = getattr(image, "n_frames", 1)
        if count > 1 and image.format != "MPO":  # photos with a preview
            raise DataError(f"{count} pictures in one file; expected one in each file")
        if image.format not in FORMATS:
            raise DataError(
                f"an image of the format {image.format}; expected {', '.join(FORMATS)}. Convert it"
            )
        if (bits := _bits(image)) > 8:
            raise DataError(
                f"pixels of more than 8 bits ({bits} in a channel); expected 8 bits. Scale and "
                "save them with 8 bits, or open an array of floats (.npy)"
            )
        ImageOps.exif_transpose(image, in_place=True)
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _bits(image: "Image") -> int:
    """Return the number of bits of a channel in the file of an image that is not decoded yet.

    The mode is not enough: Pillow reads colours of 16 bits as their high bytes, in 8-bit modes.
    """
    if image.format == "TIFF":
        return max(cast(Any, image).tag_v2.get(BITS_PER_SAMPLE, (1,)))
    if image.mode[0] in "IF":
        return 16
    raw_modes = [str(tile[3]) for tile in cast(Any, image).tile]
    return 16 if image.format == "PNG" and any(";16" in mode for mode in raw_modes) else 8


def is_grey(image: "Image") -> bool:
    """Return whether all pixels of a picture are grey."""
    if image.mode == "L":
        return True
    red, green, blue = (np.asarray(band) for band in image.split())
    return np.array_equal(red, green) and np.array_equal(green, blue)


def _pixels(image: "Image", schema: "ImageSchema") -> np.ndarray:
    """Return the pixels of an image, in the size and the channels of a schema."""
    from PIL import ImageOps

    channels, height, width = schema.event_shape
    if image.size != (width, height) and not schema.resized:
        raise OtherSizeError(image.size)
    if channels == 1 and schema.channels is None and not is_grey(image):
        raise DataError(
            "in colour; expected grey, as the sampled images. Pass "
            f"{setting('channels', 'colour')} for all in colour, or "
            f"{setting('channels', 'grey')} to convert them"
        )
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height))
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def reason_of(error: Exception) -> str:
    """Return why a file cannot be read."""
    damaged = type(error).__name__ == "UnidentifiedImageError"
    return "not an image, empty, or damaged" if damaged else str(error) or type(error).__name__
