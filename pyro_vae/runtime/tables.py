"""Render rich tables, and names from files, as text."""

from typing import Protocol

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
