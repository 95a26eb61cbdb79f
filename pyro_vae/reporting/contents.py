"""The figures of each content of data."""

from collections.abc import Callable

from matplotlib.figure import Figure

from pyro_vae.data.dataset import Dataset
from pyro_vae.reporting import counts, images, tables
from pyro_vae.reporting.subject import Subject

# To show another content of data (`Schema.content`), add its figures here.
FIGURES: dict[str, Callable[[Subject], dict[str, Figure]]] = {
    "images": images.figures,
    "table": tables.figures,
    "counts": counts.figures,
    "array": tables.figures_of_array,
}


def content_of(data: Dataset) -> str:
    """Return the content of data: that of the schema, or images for three dimensions."""
    content = getattr(data.schema, "content", "array")
    return "images" if content == "array" and len(data.event_shape) == 3 else content
