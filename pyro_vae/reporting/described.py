"""The parts of a model as text."""

import math

from pyro_vae.models.base import Autoencoder
from pyro_vae.part import Part, code_of


def parts_of(vae: Autoencoder) -> list[tuple[str, str, int]]:
    """Return name, description and number of parameters of the constructor arguments."""
    return [
        (
            name,
            code_of(value, line_length=math.inf),
            sum(parameter.numel() for parameter in value.parameters())
            if isinstance(value, Part)
            else 0,
        )
        for name, value in vae.build_arguments.items()
        if name != "schema"  # it has a section of its own
    ]
