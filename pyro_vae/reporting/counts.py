"""Figures of counts: variances, zeros and totals of data and model."""

from matplotlib.figure import Figure

from pyro_vae import plots
from pyro_vae.reporting.subject import Subject

ROWS = 2000  # samples, and test data that they are compared with


def figures(subject: Subject) -> dict[str, Figure]:
    """Return the figures of counts."""
    x = subject.test.spread(ROWS)
    title = f"{subject.title}\n{len(x):,} test data and {ROWS:,} samples of the model"
    return {"counts": plots.count_moments(x.cpu(), subject.sample(ROWS).cpu(), title)}
