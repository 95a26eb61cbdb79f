"""Neural networks: plain modules that return tensors, not distributions."""

from pyro_vae.networks.context import WithContext
from pyro_vae.networks.layers import (
    ACTIVATIONS,
    MLP,
    ConvDecoder,
    ConvEncoder,
    Initial,
    Shape,
    Standardized,
    WithMask,
    shape_of,
)

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "ConvDecoder",
    "ConvEncoder",
    "Initial",
    "Shape",
    "Standardized",
    "WithContext",
    "WithMask",
    "shape_of",
]
