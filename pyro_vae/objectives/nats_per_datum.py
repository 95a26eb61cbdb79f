"""Scale the log densities of a Pyro program to nats per datum."""

from typing import Protocol

from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceTailAdaptive_ELBO
from pyro.poutine.messenger import Messenger

from pyro_vae.arguments import Count, checked
from pyro_vae.pairs.pair import Program
from pyro_vae.pairs.plates import data_plates_of, frame_of
from pyro_vae.pairs.sites import Node, full_size_of


class HasObjective(Protocol):
    """An object with an objective, such as an SVI."""

    @property
    def objective(self) -> object:
        """The objective."""


class PerDatum(Messenger):
    """Effect handler that scales log densities to nats per datum.

    It multiplies the log densities of sites in the plate over the data by 1/M, with M the size of
    the batch, and those of the other sites by 1/N. Use it around both model and guide. A plate that
    Pyro subsamples (`pyro.plate("data", N, subsample_size=M)`) already has the factor N/M, and gets
    1/M in total as well.

    Args:
        num_data: N, the size of the whole dataset.
        plates: Names of the plates over the data. Sites in none of them are global.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro import poutine
        >>> import pyro_vae as pv
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> with pv.objectives.PerDatum(100, "data"):
        ...     trace = poutine.trace(model).get_trace(torch.zeros(10))
        >>> trace.nodes["loc"]["scale"], trace.nodes["x"]["scale"]
        (0.01, 0.1)

    See also: `per_datum`, which wraps a program and finds its plates.
    """

    @checked
    def __init__(self, num_data: Count, *plates: str) -> None:
        super().__init__()
        self.num_data, self.plates = num_data, plates

    def _pyro_sample(self, msg: Node) -> None:
        frame = frame_of(msg, self.plates)
        size = self.num_data if frame is None else full_size_of(frame)
        msg["scale"] = msg["scale"] / size
        msg["infer"]["_data_plates"] = self.plates  # read by `ImportanceWeighted` and `FreeBits`


@checked
def per_datum(program: Program, num_data: Count, *plates: str) -> Program:
    """Return a Pyro program with its log densities scaled to nats per datum.

    Args:
        program: A model or a guide.
        num_data: N, the size of the whole dataset.
        plates: Names of the plates over the data. If none is given, the first call finds them, as
            `fit` does. It runs the program once more on its arguments, and on a few of their rows
            if the program has plates other than `"data"`.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro import poutine
        >>> import pyro_vae as pv
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("people", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> scaled = pv.objectives.per_datum(model, 100)
        >>> poutine.trace(scaled).get_trace(torch.zeros(10)).nodes["x"]["scale"]
        0.1

    See also: `PerDatum`; `fit`, which applies it to model and guide.
    """
    known: tuple[str, ...] | None = plates or None

    def scaled(*args: object, **kwargs: object) -> object:
        nonlocal known
        if known is None:
            known = data_plates_of(program, *args, **kwargs)
        with PerDatum(num_data, *known):
            return program(*args, **kwargs)

    return scaled


def is_elbo(objective: object) -> bool:
    """Return whether the value of an objective estimates the ELBO.

    Args:
        objective: Objective of Pyro or of this package.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> import pyro_vae as pv
        >>> pv.objectives.is_elbo(Trace_ELBO()), pv.objectives.is_elbo(pv.objectives.Beta(4.0))
        (True, False)

    See also: `fit`, which reports `"train_elbo"` for such objectives if no term is weighted, as by
    `poutine.scale`, else `"train_objective"`.
    """
    pyros = (Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO)
    default = isinstance(objective, pyros) and not isinstance(objective, TraceTailAdaptive_ELBO)
    return getattr(objective, "is_elbo", default)


def has_value(objective: object) -> bool:
    """Return whether the loss of an objective is an estimate of a value.

    The loss of Pyro's `TraceTailAdaptive_ELBO` is always infinite: it only computes gradients.

    Args:
        objective: Objective of Pyro or of this package.
    """
    inner = getattr(objective, "objective", None)
    return not isinstance(objective, TraceTailAdaptive_ELBO) and (inner is None or has_value(inner))


def objectives_of(svi: HasObjective) -> list[object]:
    """Return the objective of an SVI, followed by the objectives that it wraps."""
    found, objective = [], svi.objective
    while objective is not None:
        found.append(objective)
        objective = getattr(objective, "objective", None)
    return found
