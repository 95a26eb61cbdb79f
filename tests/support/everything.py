"""One part that holds every part of the package, for saved models of each format."""

from torch import nn

import pyro_vae as pv


class Everything(pv.Part):
    """A list of parts."""

    def __init__(self, parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)
