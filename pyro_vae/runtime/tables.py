"""Render rich tables as text."""

from typing import Protocol


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
