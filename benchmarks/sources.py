"""Time to read a folder of images, to a torch DataLoader, and memory of sparse counts.

python benchmarks/sources.py images
python benchmarks/sources.py counts
"""

import io
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import sparse
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

import pyro_vae as pv
from pyro_vae.data.sources import image_files, images
from pyro_vae.data.sources.opening import open as open_source

NUM_IMAGES, SIDE, BATCH, REPEATS = 50_000, 64, 128, 3
NUM_DIFFERENT = 1000  # images; the others are copies
WORKERS = (0, 2)
NUM_CELLS, NUM_GENES, DENSITY = 200_000, 2000, 0.05


def write_images(folder: Path) -> None:
    """Write smooth colour images with noise, as PNG, in two folders of classes."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    files = []
    for _ in range(NUM_DIFFERENT):
        waves = [np.sin(rng.normal() * x / 8 + rng.normal() * y / 8) for _ in range(3)]
        pixels = 128 + 100 * np.stack(waves, -1) + 5 * rng.normal(size=(SIDE, SIDE, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file := io.BytesIO(), "png")
        files.append(file.getvalue())
    for name in ("a", "b"):
        (folder / name).mkdir()
    for i in range(NUM_IMAGES):
        (folder / "ab"[i % 2] / f"{i}.png").write_bytes(files[i % NUM_DIFFERENT])


def epoch(data: pv.data.Dataset) -> None:
    """Read the batches of an epoch."""
    generator = torch.Generator().manual_seed(0)
    for _ in data.batches(data.order(generator, BATCH), generator):
        pass


def time_images() -> None:
    """Time the ways to read a folder, interleaved, with each number of workers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder)
        for workers in WORKERS:
            image_files.NUM_THREADS = max(1, workers)
            compare(folder, workers)


def compare(folder: Path, workers: int) -> None:
    """Time the ways to read a folder with a number of workers, or threads."""
    loader = DataLoader(
        ImageFolder(folder, pil_to_tensor), BATCH, shuffle=True, num_workers=workers
    )
    opened = open_source(folder)
    files = pv.data.Dataset(images.ImageFiles(sorted(folder.rglob("*.png")), opened.schema))
    ways: dict[str, Callable[[], object]] = {
        "DataLoader, an epoch": lambda: consume(loader),
        "from files, an epoch": lambda: epoch(files),
        "open": lambda: open_source(folder),
        "in memory, an epoch": lambda: epoch(opened),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(REPEATS):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[way].append(time.perf_counter() - start)
    base = np.array(seconds["DataLoader, an epoch"])
    print(f"{NUM_IMAGES:,} images, {workers} workers, {REPEATS} repeats", flush=True)
    for way, times in seconds.items():
        ratio = np.array(times) / base
        print(f"{way}: {np.median(times):.2f} s, ratio {np.median(ratio):.2f}"
              f" ({ratio.min():.2f} to {ratio.max():.2f})", flush=True)  # fmt: skip


def consume(batches: Iterable[object]) -> None:
    """Read all batches."""
    for _ in batches:
        pass


def peak() -> float:
    """Return the peak memory of the process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure_counts() -> None:
    """Measure time and memory of a sparse matrix."""
    rng = np.random.default_rng(0)
    per_row = int(NUM_GENES * DENSITY)
    indptr = np.arange(NUM_CELLS + 1, dtype=np.int32) * per_row
    columns = np.empty(NUM_CELLS * per_row, np.int32)
    for row in range(NUM_CELLS):
        step = NUM_GENES // per_row
        start = row * per_row
        columns[start : start + per_row] = np.arange(per_row) * step + rng.integers(step)
    values = rng.integers(1, 20, len(columns)).astype(np.float32)
    matrix = sparse.csr_matrix((values, columns, indptr), (NUM_CELLS, NUM_GENES))
    print(f"peak with the matrix: {peak():.2f} GB")
    start = time.perf_counter()
    data = open_source(matrix)
    print(f"opened in {time.perf_counter() - start:.1f} s, peak {peak():.2f} GB")
    start = time.perf_counter()
    epoch(data)
    print(f"an epoch of batches in {time.perf_counter() - start:.1f} s, peak {peak():.2f} GB")
    mlp = pv.networks.MLP
    vae = pv.VAE(
        pv.priors.StandardNormal(10),
        pv.likelihoods.NegativeBinomial(mlp(10, [128], NUM_GENES)),
        pv.guides.DiagonalNormal(mlp(NUM_GENES, [128], 20)),
    )
    train, validation = data.hold_out(1000)
    start = time.perf_counter()
    pv.fit(vae, train, validation=validation, epochs=1, batch_size=512, progress=False)
    print(f"trained an epoch in {time.perf_counter() - start:.1f} s, peak {peak():.2f} GB")


if __name__ == "__main__":
    {"images": time_images, "counts": measure_counts}[sys.argv[1]]()
