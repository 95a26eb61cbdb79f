"""Tables: imputation and anomaly detection with `pyro_vae.suggest`, next to scikit-learn's methods.

    python benchmarks/tables.py --out runs/tables.json     the study, about an hour on one core
    python benchmarks/tables.py --quick                    one seed and few epochs
    python benchmarks/tables.py --only half                one task
    python benchmarks/tables.py --scale                    time and memory for 100,000 x 30 values

Imputation: 20% of the entries, or half of them, are removed completely at random. Each method is
given the incomplete table and fills it. RMSE and MSE are in standard deviations of the columns.
Coverage is the share of removed entries inside the central 50% and 90% intervals of the draws.
Anomalies: AUROC of -log p(x) and of the score of an isolation forest; both are trained on half of
the normal rows and scored on the other half and the anomalies. All methods have the same rows,
masks and splits for a seed. Results are kept in a JSON file, and existing ones are not computed
again.
"""

import functools
import json
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from sklearn import datasets
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from typer import Option, run

import pyro_vae as pv

MISSING, NUM_DRAWS = 0.2, 200
Result = dict[str, float]


def tables() -> dict[str, pd.DataFrame]:
    """Return the complete tables."""
    return {
        "wine": datasets.load_wine(as_frame=True).data,
        "breast cancer": datasets.load_breast_cancer(as_frame=True).data,
        "diabetes": datasets.load_diabetes(as_frame=True, scaled=False).data,
    }


def incomplete(
    table: pd.DataFrame, seed: int, missing: float = MISSING
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return a table without a share of its entries, and their mask."""
    lost = np.random.default_rng(seed).random(table.shape) < missing
    lost[lost.all(axis=1), 0] = False
    return table.mask(lost), lost


def rmse(table: pd.DataFrame, filled: np.ndarray, lost: np.ndarray) -> float:
    """Return the error of the removed entries in standard deviations of their columns."""
    errors = (filled - table.to_numpy()) / table.to_numpy().std(axis=0)
    return float(np.sqrt((errors[lost] ** 2).mean()))


def impute_vae(
    table: pd.DataFrame, seed: int, settings: dict[str, Any], missing: float = MISSING
) -> Result:
    """Fill a table with draws of a VAE; measure the coverage of their intervals.

    The root mean squared error (RMSE) is that of their median, the mean squared error (MSE) that of
    their mean.
    """
    given, lost = incomplete(table, seed, missing)
    estimator = pv.sklearn.VAE(random_state=seed, **settings).fit(given)
    torch.manual_seed(seed)
    draws = np.stack([f.to_numpy() for f in estimator.vae_.impute(given, NUM_DRAWS, draws=True)])
    draws = draws.astype(np.float64)
    result = {
        "rmse": rmse(table, np.median(draws, axis=0), lost),
        "mse": rmse(table, draws.mean(axis=0), lost) ** 2,
    }
    for level in (50, 90):
        low, high = np.percentile(draws, [50 - level / 2, 50 + level / 2], axis=0)
        inside = (low <= table.to_numpy()) & (table.to_numpy() <= high)
        result[f"coverage {level}%"] = float(inside[lost].mean())
    return result


def impute_peer(imputer: Callable[[int], Any]) -> Callable[..., Result]:
    """Return a function that fills a table by an imputer of scikit-learn."""

    def impute(
        table: pd.DataFrame, seed: int, settings: dict[str, Any], missing: float = MISSING
    ) -> Result:
        given, lost = incomplete(table, seed, missing)
        scaler = StandardScaler().fit(given)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            filled = imputer(seed).fit_transform(scaler.transform(given))
        error = rmse(table, scaler.inverse_transform(filled), lost)
        return {"rmse": error, "mse": error**2}

    return impute


IMPUTERS: dict[str, Callable[..., Result]] = {
    "suggest": impute_vae,
    "IterativeImputer": impute_peer(lambda seed: IterativeImputer(random_state=seed)),
    "KNNImputer": impute_peer(lambda seed: KNNImputer()),
    "column means": impute_peer(lambda seed: SimpleImputer()),
}


def anomalies(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return training rows, test rows, and whether each test row is an anomaly."""
    if name == "breast cancer":
        x, y = datasets.load_breast_cancer(return_X_y=True)
        is_anomaly = y == 0  # malignant
    else:
        x, y = datasets.load_digits(return_X_y=True)
        is_anomaly = y == seed % 10
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(~is_anomaly))
    train = normal[: len(normal) // 2]
    test = np.concatenate([normal[len(normal) // 2 :], np.flatnonzero(is_anomaly)])
    return x[train], x[test], is_anomaly[test]


def detect_vae(name: str, seed: int, settings: dict[str, Any]) -> Result:
    """Score anomalies by -log p(x)."""
    train, test, is_anomaly = anomalies(name, seed)
    scores = pv.sklearn.VAE(random_state=seed, **settings).fit(train).score_samples(test)
    return {"auroc": float(roc_auc_score(is_anomaly, -scores))}


def detect_forest(name: str, seed: int, settings: dict[str, Any]) -> Result:
    """Score anomalies by an isolation forest."""
    train, test, is_anomaly = anomalies(name, seed)
    scores = IsolationForest(random_state=seed).fit(train).score_samples(test)
    return {"auroc": float(roc_auc_score(is_anomaly, -scores))}


DETECTORS: dict[str, Callable[..., Result]] = {
    "suggest": detect_vae,
    "IsolationForest": detect_forest,
}


def scale() -> None:
    """Print the time and memory for a table of 100,000 rows and 30 columns of five kinds."""
    rng, n = np.random.default_rng(0), 100_000
    draw = [
        lambda: rng.normal(size=n),
        lambda: rng.lognormal(size=n),
        lambda: rng.poisson(4, n),
        lambda: rng.choice(["yes", "no"], n),
        lambda: rng.choice([f"level {j}" for j in range(20)], n),
    ]
    frame = pd.DataFrame({f"c{i}": draw[i % 5]() for i in range(30)})
    frame = frame.mask(rng.random(frame.shape) < 0.05)
    started = time.perf_counter()
    data = pv.data.open(frame)
    data.schema.rows()
    print(f"describe: {time.perf_counter() - started:.1f} s")
    for compile in (False, True):
        vae = pv.suggest(data, show=False)
        fit = pv.fit(vae, data, epochs=2, batch_size=512, compile=compile, progress=False)
        print(f"second epoch, compile={compile}: {fit.history[-1]['seconds']:.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory: {peak:.2f} GB")


def paired(results: dict[str, Result], task: str, name: str, method: str, score: str) -> str:
    """Return the mean of a score over seeds, and the difference to `suggest` with its error."""
    prefix = f"{task}/{name}/"
    seeds = [key.split("/")[-1] for key in results if key.startswith(f"{prefix}{method}/")]
    values = np.array([results[f"{prefix}{method}/{seed}"].get(score, np.nan) for seed in seeds])
    if np.isnan(values).any():
        return "-"
    ours = np.array([results[f"{prefix}suggest/{seed}"][score] for seed in seeds])
    text = f"{values.mean():.3f} (sd {values.std(ddof=1) if len(values) > 1 else 0:.3f})"
    if method == "suggest" or len(seeds) < 2:
        return text
    difference = values - ours
    error = difference.std(ddof=1) / np.sqrt(len(seeds))
    return f"{text}, {difference.mean():+.3f} ± {error:.3f}"


def show(results: dict[str, Result]) -> None:
    """Print the results, with paired differences to `suggest`."""
    for task, methods, scores in (
        ("imputation", IMPUTERS, ("rmse", "coverage 50%", "coverage 90%")),
        ("half", IMPUTERS, ("mse", "coverage 50%", "coverage 90%")),
        ("anomalies", DETECTORS, ("auroc",)),
    ):
        names = dict.fromkeys(k.split("/")[1] for k in results if k.startswith(f"{task}/"))
        if not names:
            continue
        table = Table("data", "method", *scores, title=task)
        for name in names:
            for method in methods:
                cells = [paired(results, task, name, method, score) for score in scores]
                table.add_row(name, method, *cells)
        Console(width=110).print(table)


def jobs(only: str | None) -> Iterator[tuple[tuple[str, str, str], Callable[..., Result], Any]]:
    """Yield task, data and method of each result, its function and the argument of this."""
    frames = tables()
    impute = [(name, method) for name in frames for method in IMPUTERS]
    detect = [(name, method) for name in ("breast cancer", "digits") for method in DETECTORS]
    if only in (None, "imputation"):
        for name, method in impute:
            yield ("imputation", name, method), IMPUTERS[method], frames[name]
    if only in (None, "half"):
        for name, method in impute:
            if name == "breast cancer":
                function = functools.partial(IMPUTERS[method], missing=0.5)
                yield ("half", name, method), function, frames[name]
    if only in (None, "anomalies"):
        for name, method in detect:
            yield ("anomalies", name, method), DETECTORS[method], name


def main(
    out: Annotated[Path, Option(help="File of the results.")] = Path("runs/tables.json"),
    seeds: Annotated[int, Option(help="Number of seeds.")] = 5,
    quick: Annotated[bool, Option(help="One seed and few epochs.")] = False,
    only: Annotated[
        Literal["imputation", "half", "anomalies"] | None, Option(help="One task.")
    ] = None,
    measure_scale: Annotated[bool, Option("--scale", help="Measure a large table.")] = False,
) -> None:
    """Compute the results that are not in the file, and print all."""
    torch.set_num_threads(1)
    if measure_scale:
        scale()
        return
    settings = {"epochs": 3} if quick else {}
    out = out.with_suffix(".quick.json") if quick else out
    results = json.loads(out.read_text()) if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(1 if quick else seeds):
        for names, function, data in jobs(only):
            key = "/".join([*names, str(seed)])
            if key in results:
                continue
            started = time.perf_counter()
            results[key] = function(data, seed, settings)
            print(key, results[key], f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
            temporary = out.with_suffix(".tmp")
            temporary.write_text(json.dumps(results, indent=1))
            temporary.replace(out)
    show(results)


if __name__ == "__main__":
    run(main)
