import numpy as np
import pytest

from pyro_vae.data import disk_array
from tests.support.arrays import EVENT, NUM_DATA


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (NUM_DATA, *EVENT), dtype=np.uint8)


@pytest.fixture
def small_windows(monkeypatch):
    """Blocks of three rows of 16 bytes, windows of four blocks."""
    monkeypatch.setattr(disk_array, "BLOCK_BYTES", 48)
    monkeypatch.setattr(disk_array, "WINDOW_BYTES", 192)
