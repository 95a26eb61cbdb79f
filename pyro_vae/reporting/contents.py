"""The figures of each content of data."""

from collections.abc import Callable

from matplotlib.figure import Figure

from pyro_vae.reporting import counts, images, tables
from pyro_vae.reporting.subject import Subject

# To show another content of data (`Schema.content`), add its figures here.
FIGURES: dict[str, Callable[[Subject], dict[str, Figure]]] = {
    "images": images.figures,
    "table": tables.figures,
    "counts": counts.figures,
    "array": tables.figures_of_array,
}
