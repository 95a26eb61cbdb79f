"""Reading of files shows a progress bar on a terminal, and nothing elsewhere."""

import io
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

import pyro_vae as pv
from pyro_vae.data.sources import matrices


def images(folder):
    for i in range(20):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(folder / f"{i:02}.png")
    return folder, 20


def counts(folder):
    sparse.save_npz(folder / "counts.npz", sparse.csr_array(np.ones((30, 3))))
    return folder / "counts.npz", 30


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("write", [images, counts])
def test_reading_shows_a_bar_on_a_terminal(write, is_terminal, tmp_path, monkeypatch):
    path, num_data = write(tmp_path)
    monkeypatch.setattr(matrices, "BLOCK", 7)
    screen = io.StringIO()
    screen.isatty = lambda: is_terminal
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    assert len(pv.data.open(path)) == num_data
    shown = screen.getvalue()
    assert (f"{num_data}/{num_data}" in shown) is is_terminal
    assert is_terminal or not shown
