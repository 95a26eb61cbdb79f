"""Encode figures as image files."""

import io

from matplotlib import figure as mpl


class Figure(mpl.Figure):
    """A figure that notebooks display as the value of a cell, without pyplot."""

    def _repr_png_(self) -> bytes:
        return encoded(self, dpi=100)


def encoded(figure: mpl.Figure, kind: str = "png", dpi: int = 150) -> bytes:
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
