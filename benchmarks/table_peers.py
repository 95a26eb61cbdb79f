"""Tables and counts: `pyro_vae.suggest` next to other packages, on the same rows and splits.

    pip install hyperimpute ctgan sdmetrics pyod scvi-tools scanpy statsmodels
    python benchmarks/table_peers.py --out runs/table_peers.json    about an hour on one core

Each method has its defaults. Imputation: hyperimpute's MIWAE, on the masks of `tables.py`.
Synthesis: the classes TVAE and CTGAN that SDV wraps; the score is SDMetrics' quality score against
held-out rows, for as many samples; `column` and `pairs` are its two halves. "Training rows" is the
score of the training rows. In "election, integers", levels are integers, and `suggest` finds the
kinds by its rules. Anomalies: pyod's VAE, on the splits of `tables.py`. Counts: scvi-tools' SCVI
with latent library sizes, so that both models have a density of all counts; held-out log p(x) in
nats per cell. A package that is not installed is left out.
"""

import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from scipy import sparse
from sklearn import datasets
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from tables import Result, anomalies, detect_vae, impute_vae, incomplete, paired, rmse
from tables import tables as incomplete_tables
from typer import Option, run

import pyro_vae as pv

SAMPLES = 1000  # of log p(x)
ELECTION_LEVELS = ["TVnews", "selfLR", "ClinLR", "DoleLR", "PID", "educ", "income", "vote"]
EPOCHS_OF_COUNTS = 200


def impute_miwae(table: pd.DataFrame, seed: int, settings: dict[str, Any]) -> Result:
    """Fill a standardized table by hyperimpute's MIWAE."""
    from hyperimpute.plugins.imputers.plugin_miwae import MIWAEPlugin

    given, lost = incomplete(table, seed)
    scaler = StandardScaler().fit(given)
    epochs = {"n_epochs": settings["epochs"]} if settings else {}
    scaled = pd.DataFrame(scaler.transform(given), columns=given.columns)
    filled = MIWAEPlugin(random_state=seed, **epochs).fit_transform(scaled)
    return {"rmse": rmse(table, scaler.inverse_transform(np.asarray(filled)), lost)}


def detect_pyod(name: str, seed: int, settings: dict[str, Any]) -> Result:
    """Score anomalies by pyod's VAE, whose score is the squared error of the reconstruction."""
    from pyod.models.vae import VAE

    train, test, is_anomaly = anomalies(name, seed)
    epochs = {"epoch_num": settings["epochs"]} if settings else {}
    torch.manual_seed(seed)
    detector = VAE(random_state=seed, device="cpu", verbose=0, **epochs).fit(train)
    return {"auroc": float(roc_auc_score(is_anomaly, detector.decision_function(test)))}


def mixed_tables() -> dict[str, pd.DataFrame]:
    """Return complete tables with numbers and levels."""
    import statsmodels.api as sm

    found = {}
    for name, load in (
        ("wine", datasets.load_wine),
        ("breast cancer", datasets.load_breast_cancer),
    ):
        loaded = load(as_frame=True)
        found[name] = loaded.data.assign(
            target=[str(loaded.target_names[y]) for y in loaded.target]
        )
    election = sm.datasets.anes96.load_pandas().data
    found["election 1996"] = election.assign(
        **{name: [f"level {int(code)}" for code in election[name]] for name in ELECTION_LEVELS}
    )
    found["election, integers"] = election.astype(dict.fromkeys(ELECTION_LEVELS, int))
    return found


def levels_of(table: pd.DataFrame) -> list[str]:
    """Return the names of the columns with levels; all peers and scores know them."""
    return [
        name for name in table if table[name].dtype.kind not in "iuf" or name in ELECTION_LEVELS
    ]


def halves(table: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return two random halves of the rows."""
    order = np.random.default_rng(seed).permutation(len(table))
    first, second = np.array_split(order, 2)
    return (
        table.iloc[first].reset_index(drop=True),
        table.iloc[second].reset_index(drop=True),
    )


def quality(real: pd.DataFrame, synthetic: pd.DataFrame) -> Result:
    """Return SDMetrics' quality score and its two halves."""
    from sdmetrics.reports.single_table import QualityReport

    levels = levels_of(real)
    kinds = {name: {"sdtype": "categorical" if name in levels else "numerical"} for name in real}
    report = QualityReport()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report.generate(real, synthetic[[*real]], {"columns": kinds}, verbose=False)
    column, pairs = report.get_properties()["Score"]
    return {"quality": float(report.get_score()), "column": float(column), "pairs": float(pairs)}


def synthesize_vae(table: pd.DataFrame, seed: int, settings: dict[str, Any]) -> Result:
    """Sample a table from a VAE; score its held-out rows, too."""
    train, test = halves(table, seed)
    # Kinds are found on all rows: in half of them, a column may have numbers below 1 only.
    kinds = {column.name: column.kind for column in pv.data.open(table).schema.columns}
    estimator = pv.sklearn.VAE(
        random_state=seed, num_samples=SAMPLES, columns=kinds, **settings
    ).fit(train)
    torch.manual_seed(seed)
    drawn = estimator.vae_.schema.restore(estimator.vae_.sample(len(test)))
    drawn = drawn.astype({name: table[name].dtype for name in levels_of(table)})
    return quality(test, drawn) | {"log p": float(estimator.score(test))}


def synthesize_peer(name: str) -> Callable[..., Result]:
    """Return a function that samples a table from a class of the package ctgan."""

    def synthesize(table: pd.DataFrame, seed: int, settings: dict[str, Any]) -> Result:
        import ctgan

        train, test = halves(table, seed)
        np.random.seed(seed)  # noqa: NPY002 - ctgan draws from it
        torch.manual_seed(seed)
        levels = levels_of(train)
        peer = getattr(ctgan, name)(enable_gpu=False, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer.fit(train, levels)
        return quality(test, peer.sample(len(test)))

    return synthesize


def training_rows(table: pd.DataFrame, seed: int, settings: dict[str, Any]) -> Result:
    """Score the training rows as if they were samples."""
    train, test = halves(table, seed)
    return quality(test, train)


def count_matrices() -> dict[str, sparse.csr_matrix]:
    """Return matrices of counts: 700 cells of 10x Genomics, and the ink of digits.

    scanpy has log(1 + c k) of counts k with one factor c for each cell. The smallest positive value
    of a cell is that of k = 1.
    """
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = np.expm1(scanpy.datasets.pbmc68k_reduced().raw.X.toarray().astype(np.float64))
    unit = np.where(values > 0, values, np.inf).min(axis=1, keepdims=True)
    counts = values / unit
    rounded = counts.round()
    is_whole = np.abs(counts - rounded).max(axis=1) < 0.02
    kept = rounded[is_whole][:, rounded[is_whole].sum(axis=0) > 0]
    digits = datasets.load_digits().data
    return {
        "pbmc68k": sparse.csr_matrix(kept),
        "digits": sparse.csr_matrix(digits[:, digits.sum(axis=0) > 0]),
    }


def split_of_counts(matrix: sparse.csr_matrix, seed: int) -> tuple[Any, Any]:
    """Return training rows and a fifth of the rows for tests."""
    order = np.random.default_rng(seed).permutation(matrix.shape[0])
    count = len(order) // 5
    return matrix[order[count:]], matrix[order[:count]]


def counts_vae(matrix: sparse.csr_matrix, seed: int, settings: dict[str, Any]) -> Result:
    """Return log p(x) of held-out rows of counts."""
    train, test = split_of_counts(matrix, seed)
    torch.manual_seed(seed)
    vae = pv.suggest(train, latent_dim=10, show=False)
    epochs = settings.get("epochs", EPOCHS_OF_COUNTS)
    pv.fit(vae, train, epochs=epochs, batch_size=128, compile=False, progress=False, seed=seed)
    scores = pv.evaluate(vae, test, num_samples=SAMPLES, seed=seed)
    return {"log p": float(scores.log_likelihood.mean())}


def counts_scvi(likelihood: str) -> Callable[..., Result]:
    """Return a function that scores held-out rows of counts by SCVI with 10 latents."""

    def score(matrix: sparse.csr_matrix, seed: int, settings: dict[str, Any]) -> Result:
        import anndata
        import scvi

        scvi.settings.seed = seed
        train, test = (
            anndata.AnnData(rows.astype(np.float32)) for rows in split_of_counts(matrix, seed)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scvi.model.SCVI.setup_anndata(train)
            model = scvi.model.SCVI(
                train, n_latent=10, gene_likelihood=likelihood, use_observed_lib_size=False
            )
            model.train(
                max_epochs=settings.get("epochs", EPOCHS_OF_COUNTS),
                accelerator="cpu",
                enable_progress_bar=False,
                train_size=1.0,
            )
            found = model.get_marginal_ll(test, n_mc_samples=SAMPLES, return_mean=True)
        return {"log p": float(found)}

    return score


Task = tuple[Callable[[], dict[str, Any]], dict[str, tuple[str, Callable[..., Result]]]]

# Each method has the package that it needs.
TASKS: dict[str, Task] = {
    "imputation": (
        incomplete_tables,
        {"suggest": ("pyro_vae", impute_vae), "MIWAE": ("hyperimpute", impute_miwae)},
    ),
    "anomalies": (
        lambda: {name: name for name in ("breast cancer", "digits")},
        {"suggest": ("pyro_vae", detect_vae), "pyod's VAE": ("pyod", detect_pyod)},
    ),
    "synthesis": (
        mixed_tables,
        {
            "suggest": ("sdmetrics", synthesize_vae),
            "TVAE": ("ctgan", synthesize_peer("TVAE")),
            "CTGAN": ("ctgan", synthesize_peer("CTGAN")),
            "training rows": ("sdmetrics", training_rows),
        },
    ),
    "counts": (
        count_matrices,
        {
            "suggest": ("scanpy", counts_vae),
            "SCVI, NB": ("scvi", counts_scvi("nb")),
            "SCVI, ZINB": ("scvi", counts_scvi("zinb")),
        },
    ),
}


def show(results: dict[str, Result]) -> None:
    """Print the results, with paired differences to `suggest`."""
    for task, (_, methods) in TASKS.items():
        done = [key.split("/") for key in results if key.startswith(f"{task}/")]
        scores = list(dict.fromkeys(s for key in done for s in results["/".join(key)]))
        table = Table("data", "method", *scores, title=task)
        for name in dict.fromkeys(key[1] for key in done):
            for method in methods:
                if [task, name, method] in [key[:3] for key in done]:
                    cells = [paired(results, task, name, method, score) for score in scores]
                    table.add_row(name, method, *cells)
        Console(width=140).print(table)


def main(
    out: Annotated[Path, Option(help="File of the results.")] = Path("runs/table_peers.json"),
    seeds: Annotated[int, Option(help="Number of seeds.")] = 5,
    quick: Annotated[bool, Option(help="One seed and few epochs.")] = False,
    task: Annotated[list[str], Option(help="Tasks to run; by default all.")] = [],  # noqa: B006
    method: Annotated[list[str], Option(help="Methods to run; by default all.")] = [],  # noqa: B006
) -> None:
    """Compute the results that are not in the file, and print all."""
    torch.set_num_threads(1)
    settings = {"epochs": 2} if quick else {}
    out = out.with_suffix(".quick.json") if quick else out
    results = json.loads(out.read_text()) if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(1 if quick else seeds):
        for name in task or TASKS:
            load, methods = TASKS[name]
            known = {
                m: f
                for m, (package, f) in methods.items()
                if importlib.util.find_spec(package) and (not method or m in method)
            }
            for source, data in load().items() if known else ():
                for m, function in known.items():
                    key = f"{name}/{source}/{m}/{seed}"
                    if key in results:
                        continue
                    started = time.perf_counter()
                    results[key] = function(data, seed, settings)
                    seconds = time.perf_counter() - started
                    print(key, results[key], f"{seconds:.0f} s", file=sys.stderr)
                    out.write_text(json.dumps(results, indent=1))
    show(results)


if __name__ == "__main__":
    run(main)
