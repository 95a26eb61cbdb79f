"""Render rich tables, and names from files, as text."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

MAX_POSITIONS = 10  # that are printed
# Control characters, and those that reverse the direction of the text after them.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_VISIBLE = {code: ascii(chr(code))[1:-1] for code in _CONTROLS}


def printable(text: str) -> str:
    r"""Return text with escapes for control characters, which a terminal would obey.

    Example:
        >>> from pyro_vae.runtime.tables import printable
        >>> print(printable("red\x1b[31m"))
        red\x1b[31m
    """
    return text.translate(_VISIBLE)


class Renderable(Protocol):
    """An object that rich can print."""

    def __rich__(self) -> object:
        """Return a rich renderable, for example a `Table`."""


def rendered(item: Renderable, width: int) -> str:
    """Return the text that rich prints for an object on a console of `width` columns."""
    from rich.console import Console

    console = Console(width=width, force_jupyter=False)  # a capture would also be displayed
    with console.capture() as capture:
        console.print(item)
    return capture.get()


def summary(scores: Mapping[str, "np.ndarray"], caption: str | None = None) -> "Table":
    """Return a table of the mean, standard error and median of scores in nats, one per datum."""
    import numpy as np
    from rich.table import Table

    table = Table("nats per datum", "mean", "standard error", "median", caption=caption)
    for name, values in scores.items():
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        table.add_row(name, f"{values.mean():.2f}", f"{error:.2f}", f"{np.median(values):.2f}")
    return table


def positions(places: Sequence[int]) -> str:
    """Return a line that names data by their positions, the first few of many."""
    if not len(places):
        return ""
    shown = ", ".join(str(place) for place in places[:MAX_POSITIONS])
    rest = len(places) - MAX_POSITIONS
    return f"\n(data {shown}{f' and {rest} more' if rest > 0 else ''})"
