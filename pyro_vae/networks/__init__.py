"""Neural networks: plain modules that return tensors, not distributions."""

from pyro_vae.networks.context import WithContext
from pyro_vae.networks.inputs import ColumnInputs, Standardized, WithMask
from pyro_vae.networks.layers import (
    ACTIVATIONS,
    MLP,
    ConvDecoder,
    ConvEncoder,
    Initial,
    Shape,
    shape_of,
)

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "ColumnInputs",
    "ConvDecoder",
    "ConvEncoder",
    "Initial",
    "Shape",
    "Standardized",
    "WithContext",
    "WithMask",
    "shape_of",
]
