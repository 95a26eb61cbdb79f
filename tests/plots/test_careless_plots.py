"""Every plot is drawn, or refuses its arguments in a sentence of the package."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure

from pyro_vae import plots
from pyro_vae.arguments import ArgumentError

NAN = float("nan")
RANDOM = np.random.default_rng(0)
ONE = ("chain", "draw")
IMAGES = xr.Dataset({"x": (("data", "row", "column"), np.zeros((2, 2, 2)))}, {"data": [0, 1]})
LATENTS = xr.DataArray(
    RANDOM.normal(size=(1, 9, 2, 2)),
    dims=(*ONE, "data", "latent_dim"),
    coords={"data": [0, 1], "latent_dim": [0, 1]},
)
RANKS = xr.DataArray(RANDOM.uniform(size=(1, 50)), dims=ONE)
TREE = xr.DataTree.from_dict(
    {
        "posterior": LATENTS.to_dataset(name="z"),
        "observed_data": IMAGES,
        "posterior_predictive": IMAGES.expand_dims(chain=1, draw=4),
        "prior_sbc": RANKS.to_dataset(name="z"),
    }
)
TABLE = {"a": [1.0, 2.0], "b": [0.0, 1.0]}
LEVELS = {"b": ["no", "yes"]}
CALLS = {
    "aggregate_posterior": (RANDOM.normal(size=(20, 2)), "title", 1),
    "calibration": (TREE, False),
    "count_moments": (np.ones((5, 3)), np.ones((5, 3)), "title"),
    "densities": (TREE, [0], "data"),
    "dependence": ([("a", "b")], TABLE, TABLE, "title", LEVELS),
    "encoded": (plots.image_grid(np.zeros((1, 2, 2)), "title"), "png", 20),
    "forest": (TREE, [0], "data"),
    "gaps": ([1.0], [1.0], "title"),
    "image_grid": (np.zeros((4, 2, 2)), "title", 2),
    "imputation_errors": (["a"], [0.5], [1.0], {0.5: [0.48]}, "title"),
    "khat": (SimpleNamespace(pareto_k=np.array([0.1, 0.9]), good_k=0.7), np.zeros((2, 3, 3)), 1),
    "kl_by_dimension": ([1.0, 2.0], [True, False], "title"),
    "latent_map": (np.eye(2), [0, 1], "title", ("a", "b"), ["no", "yes"], [0.0, 0.0]),
    "learning_curve": ([{"epoch": 1, "train_elbo": -1.0}], "title"),
    "marginals": (TABLE, TABLE, "title", LEVELS),
    "mosaic": (np.zeros((1, 2, 2, 2)), "title", ["a"], ["b", "c"], ("x", "y")),
    "pairs": (TREE, 0, [0, 1], "data"),
    "predictive": (TREE, [0], "title", "data"),
    "reconstructions": (np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), "title", 1),
}
CARELESS = [
    None, 3, -1, True, NAN, "x", [], {}, object(), dict, [1, 2, 3, 4, 5], [-5], [7], [[1], [1, 2]],
    ["a", "b", "c"], [("a", "z")], {"a": [1, "b"]}, {"a": [NAN, NAN]}, {"b": 3}, [{"epoch": 1}],
    {"a": [np.inf, 1.0], "b": [NAN, NAN]},
    [{"epoch": 1, "train_elbo": "x"}], [{"epoch": 1, "train_elbo": NAN}] * 5, np.zeros((0, 2)),
    np.zeros(3), np.full((3, 2), NAN), np.full((3, 2), np.inf), np.array(["a"]),
    np.zeros((2, 2, 2), complex), np.zeros((2, 2, 3, 3)), torch.zeros(2, 2, requires_grad=True),
    torch.zeros(2, device="meta"), torch.zeros(2, 2).to_sparse(), xr.DataTree(),
]  # fmt: skip


def test_no_plot_is_forgotten():
    assert set(CALLS) == set(plots.__all__)


def outcome(plot, arguments):
    """Return "drawn", or "refused" if the error is a sentence of the package."""
    try:
        figure = plot(*arguments)
    except ArgumentError as error:
        return "refused" if len(str(error)) > 20 else str(error)
    if isinstance(figure, Figure):
        figure.canvas.draw()
    return "drawn"


@pytest.mark.parametrize("name", CALLS)
def test_careless_arguments_are_refused_or_drawn(name):
    plot, right = getattr(plots, name), CALLS[name]
    found = [
        outcome(plot, (*right[:place], value, *right[place + 1 :]))
        for place in range(len(right))
        for value in CARELESS
    ]
    assert outcome(plot, right) == "drawn"
    assert set(found) <= {"drawn", "refused"}
    assert found.count("refused") > 0.5 * len(found)
