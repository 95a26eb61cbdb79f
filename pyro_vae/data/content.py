"""The content of data: images, a table, counts, or arrays."""

from pyro_vae.data.dataset import Dataset


def content_of(data: Dataset) -> str:
    """Return the content of data: that of the schema, or images for three dimensions."""
    content = getattr(data.schema, "content", "array")
    return "images" if content == "array" and len(data.event_shape) == 3 else content
