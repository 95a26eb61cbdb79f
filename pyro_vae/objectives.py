"""Which bound is trained, and in which unit: every objective is in nats per datum.

Pyro's ELBOs sum over a minibatch. With N data, a minibatch of M estimates the whole bound without
bias when what belongs to a datum is scaled by N/M (Kingma & Welling 2013, eq. 8); divided by N, the
bound per datum, that is

    1/M sum over the minibatch of log p(x|z) + log p(z) - log q(z|x)    sites in the data's plate
    1/N (log p - log q)                                                 sites outside it (global)

so that the objective, its gradients, and with them learning rates and clipping thresholds, mean the
same whatever the batch size and the size of the data set.
"""

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger

from pyro_vae.traces import data_frame


class PerDatum(Messenger):
    """Scales the log densities of a Pyro program as above; wraps a model and its guide alike.

    A plate that Pyro itself subsamples (`pyro.plate("data", N, subsample_size=M)`) brings its own
    factor N/M, one of the batch's size does not: both come out as 1/M.

    Args:
        num_data: N, the size of the whole data set.
        batch_size: M, the number of data that the program is run on.
    """

    def __init__(self, num_data: int, batch_size: int) -> None:
        super().__init__()
        self.num_data, self.batch_size = num_data, batch_size

    def _pyro_sample(self, msg: Any) -> None:
        frame = data_frame(msg, self.batch_size)
        size = self.num_data if frame is None else frame.full_size
        msg["scale"] = msg["scale"] / size


def per_datum(program: Callable[..., Any], num_data: int) -> Callable[..., Any]:
    """Return the Pyro program with its log densities per datum of a data set of `num_data`."""

    def scaled(x: Any, *args: Any, **kwargs: Any) -> Any:
        with PerDatum(num_data, len(x)):
            return program(x, *args, **kwargs)

    return scaled
