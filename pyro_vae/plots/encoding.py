"""Encode figures as image files."""

import io
from typing import Annotated

from matplotlib import figure as mpl
from matplotlib.backend_bases import FigureCanvasBase

from pyro_vae.arguments import Instance, OneOf, Whole, checked

KINDS = tuple(FigureCanvasBase.filetypes)


class Figure(mpl.Figure):
    """A figure that notebooks display as the value of a cell, without pyplot."""

    def _repr_png_(self) -> bytes:
        return encoded(self, dpi=100)


@checked
def encoded(
    figure: Annotated[mpl.Figure, Instance((mpl.Figure,), "a figure of matplotlib")],
    kind: Annotated[str, OneOf(KINDS)] = "png",
    dpi: Annotated[int, Whole(10, 2400)] = 150,
) -> bytes:
    """Return a figure as the bytes of an image file.

    Args:
        figure: Figure to encode.
        kind: File format, as in `Figure.savefig`.
        dpi: Resolution in dots per inch.

    Example:
        >>> import numpy as np, pyro_vae as pv
        >>> pv.plots.encoded(pv.plots.image_grid(np.zeros((1, 2, 2)), "zeros"), dpi=30)[1:4]
        b'PNG'

    See also: `image_grid`, `pyro_vae.report`.
    """
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=dpi, bbox_inches="tight")
    return file.getvalue()
