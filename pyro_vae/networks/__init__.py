"""Neural networks: plain modules that return tensors, not distributions."""

from pyro_vae.networks.blocks import ACTIVATIONS, NORMS
from pyro_vae.networks.context import WithContext
from pyro_vae.networks.inputs import ColumnInputs, Standardized, WithMask
from pyro_vae.networks.layers import (
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
    "NORMS",
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
