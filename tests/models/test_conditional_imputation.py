"""`ConditionalVAE.impute` against the exact conditional of x = W z + V y + noise."""

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data import Column, TableSchema
from tests.support.commands import TRAIN, run

W = np.array([[1.0], [0.5], [-0.8]])
V = np.array([[2.0, -1.0], [0.0, 3.0], [1.0, 1.0]])
NOISE, DRAWS = 0.5, 4000
GROUPS = ["u", "v"]


class Decoder(pv.Part):
    """The mean W z + V y."""

    def __init__(self):
        super().__init__()
        self.out_shape = (3,)

    def forward(self, z, *context):
        return z @ torch.tensor(W).T.to(z) + context[0] @ torch.tensor(V).T.to(z)


class Posterior(pv.Part):
    """p(z|x_observed, y), exact for any set of observed entries."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))  # a type and a device

    def forward(self, x, y):
        w, v = torch.tensor(W).to(x), torch.tensor(V).to(x)
        observed = (~x.isnan()).to(x.dtype)
        precision = 1 + (observed @ w.square()) / NOISE**2
        residuals = torch.where(x.isnan(), torch.zeros_like(x), x - y @ v.T)
        mean = residuals @ w / NOISE**2 / precision
        return torch.distributions.Independent(
            torch.distributions.Normal(mean, precision.rsqrt()), 1
        )


def exact():
    columns = [Column(name, "real", missing=0.3, low=-9.0, high=9.0) for name in "abc"]
    group = Column("group", "binary", "text", GROUPS)
    decoded = pv.likelihoods.Missing(pv.likelihoods.Normal(Decoder(), NOISE))
    schema = TableSchema(columns, context=[group])
    return pv.ConditionalVAE(pv.priors.StandardNormal(1), decoded, Posterior(), schema)


def conditional(x, y):
    """Return mean and covariance of the missing entries of a row, given the observed ones."""
    m = np.isnan(x)
    total = W @ W.T + NOISE**2 * np.eye(3)
    mean, gain = V @ y, total[m][:, ~m] @ np.linalg.inv(total[~m][:, ~m])
    return mean[m] + gain @ (x - mean)[~m], total[m][:, m] - gain @ total[~m][:, m]


def rows():
    """Return one row for each pattern of missing entries and each context."""
    patterns = np.array([[i >> j & 1 for j in range(3)] for i in range(7)] * 2, dtype=bool)
    x = np.random.default_rng(0).normal(size=(14, 3))
    y = np.eye(2)[np.repeat([0, 1], 7)]
    return np.where(patterns, np.nan, x), y


def check_moments(draws, x, y):
    """Check samples of shape (num_draws, num_data, 3) at 5 standard errors."""
    for row in range(len(x)):
        missing = np.isnan(x[row])
        np.testing.assert_array_equal(
            draws[:, row, ~missing], np.tile(x[row, ~missing], (len(draws), 1))
        )
        if not missing.any():
            continue
        mean, covariance = conditional(x[row], y[row])
        drawn = draws[:, row, missing]
        variance = covariance.diagonal()
        assert (abs(drawn.mean(0) - mean) < 5 * np.sqrt(variance / len(draws))).all()
        products = (drawn - mean)[:, :, None] * (drawn - mean)[:, None]
        error = np.sqrt((variance[:, None] * variance + covariance**2) / len(draws))
        assert (abs(products.mean(0) - covariance) < 5 * error).all()


@pytest.mark.parametrize("given", ["tensors", "a table", "a table, another context"])
def test_samples_have_the_exact_conditional_distribution(given):
    vae, (x, y) = exact(), rows()
    x = x.astype(np.float32).astype(float)
    frame = pd.DataFrame(x, columns=[*"abc"]).assign(group=np.array(GROUPS)[y.argmax(1)])
    torch.manual_seed(0)
    if given == "tensors":
        draws = vae.impute(torch.tensor(x).float(), torch.tensor(y).float(), DRAWS).numpy()
    else:
        other = (torch.tensor(y).flip(1).float(),) if "another" in given else ()
        y = y[:, ::-1] if other else y
        tables = vae.impute(frame, *other, num_samples=200, draws=True)
        assert all(table["group"].equals(frame["group"]) for table in tables[:3])
        draws = np.stack([table[[*"abc"]].to_numpy() for table in tables])
    check_moments(draws, x, y)


def test_tables_are_completed_with_the_median_and_encoded_with_their_context():
    vae, (x, y) = exact(), rows()
    frame = pd.DataFrame(x, columns=[*"abc"]).assign(group=np.array(GROUPS)[y.argmax(1)])
    torch.manual_seed(0)
    filled = vae.impute(frame, num_samples=DRAWS)
    for row in range(len(x)):
        missing = np.isnan(x[row])
        mean, covariance = conditional(x[row], y[row])
        # The standard error of a median of normal samples.
        error = np.sqrt(np.pi / 2 * covariance.diagonal() / DRAWS)
        found = filled[[*"abc"]].to_numpy()[row]
        assert (abs(found[missing] - mean) < 5 * error).all()
    tensors = torch.tensor(x).float(), torch.tensor(y).float()
    assert torch.equal(vae.encode(frame).mean, vae.encode(*tensors).mean)
    again = vae.reconstruct(frame)
    np.testing.assert_allclose(again[[*"abc"]], vae.reconstruct(*tensors), rtol=1e-6)
    assert again["group"].tolist() == frame["group"].tolist()


@pytest.mark.parametrize("method", ["encode", "reconstruct", "impute"])
@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda x: torch.tensor(x[[*"abc"]].to_numpy()).float(), pv.PairError, "y is missing"),
        (lambda x: x.drop(columns="group"), pv.data.DataError, "'group' is missing"),
        (lambda x: x.assign(group=None), pv.data.DataError, "context has no missing values"),
        (lambda x: x.assign(group="w"), pv.data.DataError, "levels 'u', 'v', got 'w'"),
    ],
)
def test_data_without_their_context_are_refused(method, change, error, sentence):
    frame = pd.DataFrame(np.zeros((3, 3)), columns=[*"abc"]).assign(group="u")
    with pytest.raises(error, match=sentence):
        getattr(exact(), method)(change(frame))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a table of which the context decides the values, and a run on it."""
    folder = tmp_path_factory.mktemp("conditional")
    rng = np.random.default_rng(0)
    group = rng.choice(GROUPS, 160)
    frame = pd.DataFrame(
        {
            "a": rng.normal(size=160) + 20.0 * (group == "u"),
            "group": group,
            "level": np.where(rng.random(160) < 0.05, "c", np.where(group == "u", "d", "e")),
        }
    )
    frame.loc[rng.random(160) < 0.2, "a"] = np.nan
    frame.loc[rng.random(160) < 0.2, "level"] = None
    frame.to_csv(folder / "t.csv", index=False)
    words = [*TRAIN, "--epochs", "30", "--learning-rate", "0.02", "--context", "group", "--no-page"]
    run("train", folder / "t.csv", "--out", folder / "run", *words)
    return folder, frame


def test_a_conditional_run_imputes_by_its_context(trained):
    folder, frame = trained
    assert (folder / "run" / "imputation.png").is_file()
    out, intervals = folder / "full.csv", folder / "i.csv"
    words = ["impute", folder / "run", folder / "t.csv", "--out", out, "--seed", 1]
    run(*words, "--intervals", intervals)
    full = pd.read_csv(out)
    observed = frame.notna()
    assert full.notna().all(axis=None)
    pd.testing.assert_frame_equal(full.where(observed), frame.where(observed), check_dtype=False)
    lost = frame["a"].isna()
    right = np.where(frame["group"] == "u", 20.0, 0.0)[lost]
    assert (abs(full["a"][lost] - right) < 8).all()
    assert len(pd.read_csv(intervals)) == int((~observed).sum().sum())
    drawn = []
    for seed in (1, 1, 2):
        run(*words[:-1], seed, "--draws", 3)
        drawn.append(out.read_bytes())
        assert pd.read_csv(out)["draw"].value_counts().tolist() == [160] * 3
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("columns", [3, 1001])
def test_draws_of_arrays_are_all_written(columns, tmp_path):
    """Arrays with at most 1,000 columns are tables."""
    x = np.random.default_rng(0).normal(size=(40, columns)).astype(np.float32)
    x[::3, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    run("train", tmp_path / "x.npy", "--out", tmp_path / "run", "--no-page", *TRAIN)
    words = ["impute", tmp_path / "run", tmp_path / "x.npy", "--out", tmp_path / "full.npy"]
    run(*words, "--num-samples", 9)
    full, observed = np.load(tmp_path / "full.npy"), ~np.isnan(x)
    assert full.shape == x.shape
    assert (full[observed] == x[observed]).all()
    run(*words, "--draws", 5, "--num-samples", 9)
    draws = np.load(tmp_path / "full.npy")
    assert draws.shape == (5, *x.shape)
    assert (draws[:, observed] == x[observed]).all()
    assert len(np.unique(draws[:, 0, 1])) == 5
