"""Figures of tables: columns, pairs of columns, and imputed entries, next to those of the model."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import plots
from pyro_vae.models.any_vae import AnyVAE
from pyro_vae.reporting.subject import Subject

ROWS = 2000  # test data that are compared with samples
MAX_ENTRIES = 10**6  # entries of arrays that are shown as one column
COLUMNS = 40  # columns that are shown
PAIRS = 4  # pairs of columns that are shown
BINS = 6  # of a column of numbers, for its dependence on others
IMPUTED_ROWS, HIDDEN_SHARE, DRAWS = 500, 0.2, 200
PROBABILITIES = (0.5, 0.9)  # of intervals


def figures(subject: Subject) -> dict[str, Figure]:
    """Return the figures of a table."""
    schema, x = subject.test.schema, subject.test.spread(ROWS).cpu()
    names = [f"{c.name} (days)" if c.kind == "date" else c.name for c in schema.modelled]
    levels = {c.name: c.levels for c in schema.modelled if c.num_levels}
    found = _compared(subject, names, x, levels)
    if schema.has_missing and len(x) > 1:
        repeats = min(20, -(-IMPUTED_ROWS // len(x)))  # other entries are hidden in each
        given = subject.test.spread_batch(ROWS)
        rows, *context = (v[:IMPUTED_ROWS].cpu().repeat(repeats, 1) for v in given)
        errors = imputation(subject.vae, rows, [c.num_levels for c in schema.modelled], *context)
        title = f"{subject.title}\n{HIDDEN_SHARE:.0%} of the observed entries hidden, "
        title += f"{len(x[:IMPUTED_ROWS]):,} test data, {repeats} times"
        found["imputation"] = plots.imputation_errors(
            names[:COLUMNS],
            errors.model[:COLUMNS],
            errors.baseline[:COLUMNS],
            {p: shares[:COLUMNS] for p, shares in errors.coverage.items()},
            title,
        )
    return found


def figures_of_array(subject: Subject) -> dict[str, Figure]:
    """Return the figures of an array: those of a table without kinds, or of all entries as one."""
    shape = subject.test.event_shape
    if len(shape) == 1:
        x = subject.test.spread(ROWS).cpu()
        schema = subject.test.schema
        names = list(schema.names()) if schema else [f"x{i}" for i in range(shape[0])]
        return _compared(subject, names, x, {})
    x = subject.test.spread(max(2, MAX_ENTRIES // math.prod(shape))).cpu()
    title = f"{subject.title}\nall entries of {len(x):,} test data and of as many samples"
    drawn = subject.sample(len(x)).cpu()
    values = {"values": x.flatten()}, {"values": drawn.flatten()}
    return {"columns": plots.marginals(*values, title)}


def _compared(
    subject: Subject, names: list[str], x: Tensor, levels: dict[str, list[object]]
) -> dict[str, Figure]:
    """Compare columns and pairs of columns with those of samples of the model."""
    drawn = subject.sample(ROWS).cpu()
    data, model, as_many = (
        dict(zip(names, v.T.double().numpy(), strict=True)) for v in (x, drawn, drawn[: len(x)])
    )
    shown = names[:COLUMNS]
    title = f"{subject.title}\n{len(x):,} test data and "
    first = {name: data[name] for name in shown}
    of_model = f"{title}{ROWS:,} samples of the model, those out of range in the outermost bars"
    found: dict[str, Figure] = {"columns": plots.marginals(first, model, of_model, levels)}
    if pairs := most_dependent(first, {*levels}):
        title += "as many samples of the model"
        found["dependence"] = plots.dependence(pairs, data, as_many, title, levels)
    return found


def most_dependent(columns: dict[str, np.ndarray], levels: set[str]) -> list[tuple[str, str]]:
    """Return the pairs of columns with the largest Cramér's V, each column in at most two pairs.

    Numbers are cut at quantiles into `BINS` bins. V is computed on rows without missing values.
    """
    codes = {name: _codes(values, name in levels) for name, values in columns.items()}
    strength = {
        pair: cramers_v(codes[pair[0]], codes[pair[1]])
        for pair in itertools.combinations(columns, 2)
    }
    chosen: list[tuple[str, str]] = []
    for pair in sorted(strength, key=lambda pair: -strength[pair]):
        used = list(itertools.chain(*chosen))
        if strength[pair] > 0 and all(used.count(name) < 2 for name in pair):
            chosen.append(pair)
    return chosen[:PAIRS]


def _codes(values: np.ndarray, has_levels: bool) -> np.ndarray:
    """Return the bin of each value, -1 if it is missing."""
    observed = values[~np.isnan(values)]
    if has_levels or len(observed) == 0:
        return np.where(np.isnan(values), -1, np.nan_to_num(values)).astype(int)
    cuts = np.unique(np.quantile(observed, np.arange(1, BINS) / BINS))
    return np.where(np.isnan(values), -1, np.searchsorted(cuts, values, side="right"))


def cramers_v(first: np.ndarray, second: np.ndarray) -> float:
    """Return Cramér's V with the bias correction of Bergsma (2013), from 0 to 1.

    Args:
        first: Bins of one column, -1 for missing values.
        second: Bins of another column.
    """
    known = (first >= 0) & (second >= 0)
    table = np.zeros((first.max(initial=0) + 1, second.max(initial=0) + 1))
    np.add.at(table, (first[known], second[known]), 1)
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    total = table.sum()
    if min(table.shape) < 2 or total < 2:
        return 0.0
    expected = table.sum(1, keepdims=True) * table.sum(0) / total
    phi = ((table - expected) ** 2 / expected).sum() / total
    rows, columns = table.shape
    phi = max(0.0, phi - (rows - 1) * (columns - 1) / (total - 1))
    rows, columns = (n - (n - 1) ** 2 / (total - 1) for n in (rows, columns))
    return float(np.sqrt(phi / max(min(rows, columns) - 1, 1e-9)))


@dataclass(frozen=True)
class ImputationErrors:
    """Errors of imputed entries, for each column.

    Attributes:
        model: Root mean square error of the mean of the draws, in standard deviations of the
            column; for levels, the error rate of their mode.
        baseline: The same of the mean, or the mode, of the entries that are not hidden.
        coverage: Share of the hidden numbers inside the central interval of the draws, for each
            probability; NaN for levels.
    """

    model: np.ndarray
    baseline: np.ndarray
    coverage: dict[float, np.ndarray]


def imputation(
    vae: AnyVAE, x: Tensor, num_levels: list[int], *context: Tensor, seed: int = 0
) -> ImputationErrors:
    """Hide observed entries at random and impute them.

    Args:
        vae: Model of data with missing entries.
        x: Rows of shape `(num_data, num_columns)`.
        num_levels: Number of levels of each column, 0 for numbers.
        *context: Context of the rows, for a `ConditionalVAE`.
        seed: Random seed of the hidden entries.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.rand(x.shape, generator=generator) < HIDDEN_SHARE) & ~x.isnan()
    given = x.masked_fill(hidden, torch.nan)
    device = next(vae.parameters()).device
    batch = [value.to(device) for value in (given, *context)]
    draws = vae.completed(*batch, num_samples=DRAWS).cpu().double().numpy()
    width = x.shape[1]
    model, baseline = np.full(width, np.nan), np.full(width, np.nan)
    coverage = {p: np.full(width, np.nan) for p in PROBABILITIES}
    for i in range(width):
        mask = hidden[:, i].numpy()
        truth, drawn = x[:, i].double().numpy()[mask], draws[:, mask, i]
        seen = given[:, i][~given[:, i].isnan()].double().numpy()
        if not len(truth) or not len(seen):
            continue
        if num_levels[i]:
            codes = np.arange(num_levels[i])[:, None, None]
            mode = (drawn == codes).sum(axis=1).argmax(axis=0)
            usual = np.bincount(seen.astype(int)).argmax()
            model[i], baseline[i] = (mode != truth).mean(), (usual != truth).mean()
            continue
        unit = seen.std() or 1.0
        model[i] = np.sqrt(((drawn.mean(0) - truth) ** 2).mean()) / unit
        baseline[i] = np.sqrt(((seen.mean() - truth) ** 2).mean()) / unit
        for p in PROBABILITIES:
            low, high = np.quantile(drawn, [0.5 - p / 2, 0.5 + p / 2], axis=0)
            coverage[p][i] = ((low <= truth) & (truth <= high)).mean()
    return ImputationErrors(model, baseline, coverage)
