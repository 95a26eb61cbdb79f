"""Every content of data has figures, and the figures have the numbers of data and model."""

import itertools
import json
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import pyro_vae as pv
from pyro_vae.data.content import content_of
from pyro_vae.reporting import run_report, tables
from pyro_vae.reporting.contents import FIGURES
from pyro_vae.reporting.html_page import READINGS
from pyro_vae.reporting.subject import Subject


def counts_vae(data):
    size = data.event_shape[0]
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Poisson(pv.networks.MLP(2, [4], size)),
        pv.guides.DiagonalNormal(pv.networks.MLP(size, [4], 4)),
        schema=data.schema,
    )


def suggested(data):
    return pv.suggest(data, latent_dim=2, hidden=[4], show=False)


RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "$ a_b $": RNG.normal(size=40),
        "n": RNG.poisson(2.0, 40),
        "level": RNG.choice(["x", "$y$", "a very long level indeed"], 40),
        "share": RNG.uniform(0.1, 0.9, 40),
    }
)
# Data of each content, and how to build a model.
DATA = {
    "table": (lambda: pv.data.open(FRAME), suggested),
    "table, missing": (lambda: pv.data.open(FRAME.mask(RNG.random((40, 4)) < 0.2)), suggested),
    "counts": (lambda: pv.data.open(sparse.csr_array(RNG.poisson(1.0, (40, 6)))), counts_vae),
    "images": (
        lambda: pv.data.open(RNG.integers(0, 256, (30, 3, 8, 8), dtype=np.uint8)),
        suggested,
    ),
    "array of two dimensions": (lambda: pv.data.open(RNG.normal(size=(40, 2, 3))), suggested),
    "vectors": (lambda: pv.data.open(RNG.normal(size=(40, 1001))), suggested),
    "tensor": (lambda: pv.data.as_dataset(torch.randn(40, 3)), suggested),
}
PICTURES = {
    "table": {"columns"},
    "table, missing": {"columns", "imputation"},
    "counts": {"counts"},
    "images": {"samples", "reconstructions", "manifold"},
    "array of two dimensions": {"columns"},
    "vectors": {"columns"},
    "tensor": {"columns"},
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", DATA)
def test_every_content_has_a_report_and_a_page(name, tmp_path):
    from pyro_vae.reporting.html_page import write
    from pyro_vae.reporting.run_report import read_metrics

    torch.manual_seed(0)
    data, build = DATA[name][0](), DATA[name][1]
    vae = build(data)
    fit = pv.fit(vae, data, epochs=1, progress=False)
    scores = pv.report(vae, fit, data, tmp_path, num_samples=5)
    assert scores.mean("elbo") == pv.evaluate(vae, data, num_samples=5).mean("elbo")
    found = {path.stem for path in tmp_path.glob("*.png")}
    assert {"learning_curve", "latents", *PICTURES[name]} <= found
    assert found - PICTURES[name] <= {"learning_curve", "latents", "dependence"}
    assert all(matplotlib.image.imread(path).std() > 0 for path in tmp_path.glob("*.png"))
    card = pv.diagnose(vae, data[:], num_samples=30, num_gap_data=0, num_simulations=0)
    write(tmp_path / "page.html", tmp_path, read_metrics(tmp_path), vae, data[:], card)
    page = (tmp_path / "page.html").read_text()
    is_image = content_of(data) == "images"
    assert page.count("<img") == len(found) + 3 + is_image  # k-hat, KL, aggregate, predictive
    assert ("<h2>Data</h2>" in page) == (data.schema is not None)


def test_pages_need_few_of_the_metrics(tmp_path):
    from pyro_vae.reporting.html_page import write
    from pyro_vae.reporting.run_report import read_metrics

    data = pv.data.open(FRAME)
    vae = suggested(data)
    pv.report(vae, pv.fit(vae, data, epochs=1, progress=False), data, tmp_path, num_samples=30)
    path = tmp_path / "metrics.json"
    metrics = json.loads(path.read_text())
    needed = ("dataset", "binarization", "seed", "num_test", "num_importance_samples")
    card = pv.diagnose(vae, data[:], num_samples=30, num_gap_data=0, num_simulations=0)
    for names in (needed, metrics.keys() - {"test_elbo", "test_kl_se"}):
        path.write_text(json.dumps({name: metrics[name] for name in names}))
        write(tmp_path / "page.html", tmp_path, read_metrics(tmp_path), vae, data[:], card)
        assert "nan" in (tmp_path / "page.html").read_text()  # scores that are not there
    wrong = {"test_khat_share_above_threshold": [], "test_elbo": "x", "num_test": 0}
    for bad in [{**metrics, name: value} for name, value in wrong.items()] + [
        {key: value for key, value in metrics.items() if key != name} for name in needed
    ]:
        path.write_text(json.dumps(bad))
        with pytest.raises(pv.CheckpointError):
            read_metrics(tmp_path)


def test_every_content_of_the_readers_has_figures():
    from pyro_vae.data.sources import arrays, counts, images, table_schema

    schemas = (
        arrays.ArraySchema, counts.CountsSchema, images.ImageSchema, table_schema.TableSchema
    )  # fmt: skip
    assert {schema.content for schema in schemas} == set(FIGURES)


def test_dependence_is_zero_for_independent_and_one_for_equal_columns():
    first, second = (np.repeat(np.arange(4), 50), np.tile(np.arange(4), 50))
    assert tables.cramers_v(first, second) == 0.0
    assert tables.cramers_v(first, first) == pytest.approx(1.0, abs=1e-6)
    assert tables.cramers_v(first, np.zeros(200, int)) == 0.0
    missing = np.where(np.arange(200) < 199, -1, first)
    assert tables.cramers_v(missing, first) == 0.0


def test_the_most_dependent_pairs_are_shown_first():
    rng = np.random.default_rng(0)
    z = rng.normal(size=2000)
    columns = {
        "a": z, "b": np.exp(z), "c": z + 2 * rng.normal(size=2000), "d": rng.normal(size=2000),
        "e": (z > 0) * 1.0,
    }  # fmt: skip
    pairs = tables.most_dependent(columns, {"e"})
    assert pairs[0] == ("a", "b")
    used = list(itertools.chain(*pairs))
    assert max(map(used.count, used)) <= 2


def test_errors_of_imputation_are_those_of_the_draws():
    """Draws that are N(truth + 1, 2) have RMSE 1, and coverages of known probability."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 2, generator=rng, dtype=torch.float64) * 3
    x[:, 1] = (x[:, 1] > 0).double()
    seen = {}

    def completed(given, num_samples):
        seen["share"] = given.isnan().double().mean()
        noise = torch.randn(num_samples, 4000, 1, generator=rng, dtype=torch.float64)
        codes = (torch.rand(num_samples, 4000, 1, generator=rng) < 0.9).double()
        numbers = x[:, :1] + 1 + 2 * noise
        return torch.cat([numbers, torch.where(codes == 1, x[:, 1:], 1 - x[:, 1:])], -1)

    vae = SimpleNamespace(completed=completed, parameters=lambda: iter([torch.zeros(1)]))
    errors = tables.imputation(vae, x, [0, 2])
    assert float(seen["share"]) == pytest.approx(0.2, abs=0.01)
    # The mean of 200 draws has a standard deviation of 2 / sqrt(200); x has one of 3.
    assert errors.model[0] == pytest.approx(np.sqrt(1 + 4 / 200) / 3, rel=0.05)
    assert errors.baseline[0] == pytest.approx(1.0, abs=5 / np.sqrt(2 * 800))
    assert errors.model[1] == 0
    assert errors.baseline[1] == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(800))
    # |1 + e| < q 2 with e the error of the quantiles: the interval always or never has the truth.
    assert errors.coverage[0.5][0] == pytest.approx(1.0, abs=0.1)
    assert np.isnan(errors.coverage[0.5][1])


def test_bars_are_the_shares_of_the_levels():
    data = {"a": [0, 0, 1, np.nan], "n": [0.0, 1.0, 1.0, 3.0]}
    model = {"a": [1, 1, 1, 0], "n": [0.0, 0.0, 9.0, 3.0]}
    figure = pv.plots.marginals(data, model, "toy", {"a": ["no", "yes"]})
    heights = [[round(bar.get_height(), 3) for bar in axes.patches] for axes in figure.axes]
    assert heights[0] == [0.667, 0.333, 0.25, 0.75]
    assert heights[1] == [0.25, 0.5, 0, 0.25, 0.5, 0, 0, 0.5]  # 9 is shown at 3


def test_histograms_sum_to_one_with_outliers():
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=500)}
    figure = pv.plots.marginals(x, {"a": rng.normal(size=90) * 100}, "toy")
    data, model = figure.axes[0].patches[:-1], figure.axes[0].patches[-1]
    assert sum(bar.get_height() for bar in data) == pytest.approx(1.0)
    outline = model.get_xy()
    assert outline[:, 1].max() > 0.3  # nearly all samples are in the outermost bins


def test_points_are_the_moments_of_counts():
    x = np.array([[0, 4], [2, 4], [4, 1]])
    figure = pv.plots.count_moments(x, x + 1, "toy")
    points = [np.asarray(c.get_offsets()) for c in figure.axes[0].collections]
    np.testing.assert_allclose(points[0], np.stack([x.mean(0), x.var(0)], 1))
    np.testing.assert_allclose(points[1], np.stack([x.mean(0) + 1, x.var(0)], 1))
    zeros = np.asarray(figure.axes[1].collections[0].get_offsets())
    np.testing.assert_allclose(zeros, [[1 / 3, 0], [0, 0]])


def test_classes_have_their_names():
    labels = np.array([2, 0, 2])
    figure = pv.plots.latent_map(np.eye(3)[:, :2], labels, "toy", ("a", "b"), ("x", "y", "$z$"))
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["x", r"\$z\$"]


@pytest.mark.parametrize("num_levels", [0, 2, 3, 12])
@pytest.mark.parametrize("seed", range(3))
def test_dependence_shows_every_datum(num_levels, seed):
    """The axes contain all points of the data, with the random shifts of levels."""
    rng = np.random.default_rng(seed)
    data = {"a": rng.normal(size=60), "b": rng.normal(size=60)}
    levels = {}
    if num_levels:
        data["a"] = rng.integers(num_levels, size=60).astype(float)
        levels = {"a": [f"level {i}" for i in range(num_levels)]}
    for pair in (("a", "b"), ("b", "a")):
        axes = pv.plots.dependence([pair], data, data, "toy", levels).axes[0]
        low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
        points = axes.collections[0].get_offsets()
        assert len(points) == 60
        assert ((low < points) & (points < high)).all()


@pytest.mark.parametrize("labels", [None, torch.arange(40) % 2])
def test_titles_name_classes_only_if_there_are_any(labels):
    x = torch.randn(40, 3)
    data = pv.data.Dataset(x, labels=labels)
    vae = suggested(data)
    q = vae.encode(x)
    means, scales = q.mean.detach(), q.stddev.detach()
    subject = Subject(vae, data, x[:5], (), means, scales, "run", 0)
    history = [{"epoch": 1, "train_elbo": -1.0}]
    title = run_report._figures(subject, pv.Fit(history))["latents"].axes[0].get_title()
    assert ("class" in title) == (labels is not None)


@pytest.mark.parametrize("name", ["latents", "khat"])
def test_captions_are_true_of_all_data(name):
    """A page of a table has no images, and its data may have no classes."""
    assert "If the data" in READINGS[name].how
