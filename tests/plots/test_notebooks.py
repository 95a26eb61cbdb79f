"""Figures are displayed by notebooks, which call `_repr_png_` of the value of a cell."""

import numpy as np
import pytest

import pyro_vae as pv

FIGURES = {
    "array": lambda: pv.plots.learning_curve([{"epoch": 1, "train_elbo": -1.0}], "title"),
    "counts": lambda: pv.plots.count_moments(np.ones((5, 2)), np.ones((5, 2)), "title"),
    "images": lambda: pv.plots.mosaic(np.zeros((2, 2, 4, 4)), "title"),
    "table": lambda: pv.plots.marginals(
        {"age": np.arange(9.0)}, {"age": np.arange(9.0)}, "title"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FIGURES)
def test_the_value_of_a_cell_is_a_picture(kind):
    assert FIGURES[kind]()._repr_png_()[1:4] == b"PNG"
