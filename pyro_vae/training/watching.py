"""The observers of a run: `callback` and `tracker` of `fit`.

They run in the first process, between two epochs. The random state is restored after them, so a run
is the same with and without them.
"""

import contextlib
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from pyro_vae.distributed import from_first, is_first
from pyro_vae.runtime.random_state import preserved_state
from pyro_vae.training.setup import Job

Entry: TypeAlias = dict[str, float]


@contextlib.contextmanager
def tracked(job: Job) -> Iterator[None]:
    """Send the settings of a run to its tracker, and close it on exit, also after an error."""
    tracker = job.config.tracker
    if tracker is None:
        yield
        return
    try:
        with preserved_state():
            from_first(lambda: tracker.params(dict(job.settings)))
        yield
    finally:
        if is_first():
            with preserved_state():
                tracker.close()


def observe(job: Job, entry: Entry) -> bool:
    """Send the entry of a complete epoch to tracker and callback.

    Returns:
        Whether the callback asks the run to end.
    """
    callback, tracker = job.config.callback, job.config.tracker
    if callback is None and tracker is None:
        return False

    def send() -> bool:
        if tracker is not None:
            numbers = {name: value for name, value in entry.items() if name != "step"}
            tracker.metrics(numbers, int(entry["step"]))
        answer = None if callback is None else callback(dict(entry))
        return isinstance(answer, bool | np.bool_) and bool(answer)

    with preserved_state():
        return from_first(send)


def send_curve(job: Job, history: list[Entry]) -> None:
    """Send the learning curve of a run to its tracker."""
    tracker = job.config.tracker
    if tracker is None or not history:
        return
    from pyro_vae.plots.arrays import learning_curve  # only needed here: matplotlib loads slowly
    from pyro_vae.plots.images import title_of

    settings, step = job.settings, int(history[-1]["step"])
    with preserved_state():
        title = title_of(*(settings[name] for name in ("dataset", "binarization", "seed")))
        figure = learning_curve(history, title)
        tracker.figure("learning_curve", figure, step)
