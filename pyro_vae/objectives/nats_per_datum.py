"""Scale the log densities of a Pyro program to nats per datum."""

from typing import Any

from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceTailAdaptive_ELBO
from pyro.poutine.messenger import Messenger

from pyro_vae.objectives.reparameterized import Program
from pyro_vae.pairs.plates import data_plates_of, frame_of


class PerDatum(Messenger):
    """Scales the log densities of a Pyro program as above; wraps a model and its guide alike.

    A plate that Pyro itself subsamples (`pyro.plate("data", N, subsample_size=M)`) brings its own
    factor N/M, one of the batch's size does not: both come out as 1/M.

    Args:
        num_data: N, the size of the whole data set.
        plates: names of the plates over the data; sites in no such plate are global.
    """

    def __init__(self, num_data: int, *plates: str) -> None:
        super().__init__()
        self.num_data, self.plates = num_data, plates

    def _pyro_sample(self, msg: Any) -> None:
        frame = frame_of(msg, self.plates)
        size = self.num_data if frame is None else frame.full_size
        msg["scale"] = msg["scale"] / size
        msg["infer"]["_data_plates"] = self.plates  # for the objectives here


def per_datum(program: Program, num_data: int, *plates: str) -> Program:
    """Return the Pyro program with its log densities per datum of a data set of `num_data`.

    Args:
        program: a model or a guide.
        num_data: N, the size of the whole data set.
        plates: names of the plates over the data. Without them the first call finds the plates,
            as `fit` does: it runs the program once more on its arguments, and on a few of their
            rows if it has other plates than `"data"`.
    """
    known: tuple[str, ...] | None = plates or None

    def scaled(*args: Any, **kwargs: Any) -> Any:
        nonlocal known
        if known is None:
            known = data_plates_of(program, *args, **kwargs)
        with PerDatum(num_data, *known):
            return program(*args, **kwargs)

    return scaled


def is_elbo(objective: object) -> bool:
    """Whether an objective's value estimates the ELBO itself: with beta = 1, and nothing else."""
    pyros = (Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO)
    default = isinstance(objective, pyros) and not isinstance(objective, TraceTailAdaptive_ELBO)
    return getattr(objective, "is_elbo", default)


def objectives_of(svi: Any) -> list[Any]:
    """Return the objective, and what it is built around."""
    found, objective = [], svi.objective
    while objective is not None:
        found.append(objective)
        objective = getattr(objective, "objective", None)
    return found
