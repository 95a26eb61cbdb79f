"""Experiment trackers: what `fit` sends to one, and the adapter for TensorBoard."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Protocol, TypeAlias, runtime_checkable

from pyro_vae.arguments import ArgumentError, Check, FilePath, Unfit, checked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("params", "metrics", "figure", "close")


@runtime_checkable
class Tracker(Protocol):
    """Receives the settings, metrics and figures of a training run.

    `fit` calls `params` once at the start, `metrics` after each epoch, `figure` once at the end,
    and `close` when the run ends, also after an error. Any object with these four methods can be
    used.

    Example:
        >>> import pyro_vae as pv
        >>> class Printer:
        ...     def params(self, params): print(params["batch_size"])
        ...     def metrics(self, metrics, step): print(step, sorted(metrics)[0])
        ...     def figure(self, name, figure, step): print(step, name)
        ...     def close(self): print("closed")
        >>> isinstance(Printer(), pv.Tracker)
        True

    See also: `TensorBoard`, `pyro_vae.fit`.
    """

    def params(self, params: dict[str, object]) -> None:
        """Receive the settings of the run: numbers, strings and None by name."""

    def metrics(self, metrics: dict[str, float], step: int) -> None:
        """Receive the numbers of an epoch that ended at a training step."""

    def figure(self, name: str, figure: "Figure", step: int) -> None:
        """Receive a figure of matplotlib."""

    def close(self) -> None:
        """Write everything that was received."""


class IsTracker(Check):
    """An object with the methods of a `Tracker`."""

    expected = f"a tracker with the methods {', '.join(METHODS[:-1])} and {METHODS[-1]}"

    def convert(self, value: object) -> object:
        """Return the tracker."""
        if isinstance(value, type):
            raise Unfit(f"pass an instance, {value.__name__}(...)")
        # isinstance does not find methods that `__getattr__` makes, from Python 3.12 on.
        if not all(callable(getattr(value, name, None)) for name in METHODS):
            raise Unfit("for example, pyro_vae.TensorBoard('runs/board')")
        return value


AnyTracker: TypeAlias = Annotated[Tracker, IsTracker()]


class TensorBoard:
    """A `Tracker` that writes event files for TensorBoard.

        tensorboard --logdir runs/board

    A resumed run can write into the same folder. TensorBoard then shows the new events in the place
    of those of the same steps.

    Args:
        folder: Folder of the event files.

    Raises:
        ArgumentError: If TensorBoard is not installed.

    Example:
        >>> import pyro_vae as pv
        >>> tracker = pv.TensorBoard("runs/board")  # doctest: +SKIP
        >>> fit = pv.fit(vae, x, tracker=tracker)  # doctest: +SKIP

    See also: `Tracker`, `pyro_vae.fit`.
    """

    @checked
    def __init__(self, folder: FilePath) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ArgumentError(
                f"TensorBoard cannot be imported ({error}): install it by "
                "pip install 'pyro-vae[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(os.fspath(folder))

    def params(self, params: Mapping[str, object]) -> None:
        """Write the settings as a table, under the tab "Text"."""
        rows = "\n".join(f"| {name} | {value} |" for name, value in params.items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", 0)

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one scalar for each number."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def figure(self, name: str, figure: "Figure", step: int) -> None:
        """Write a figure as an image."""
        self._writer.add_figure(name, figure, step, close=False)

    def close(self) -> None:
        """Write all events and close the file."""
        self._writer.close()
