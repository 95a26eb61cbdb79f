"""`AnyVAE`: the models with `encode`, `decode` and a schema."""

from typing import Annotated, TypeAlias

from pyro_vae.arguments import Instance
from pyro_vae.models.conditional import ConditionalVAE
from pyro_vae.models.ladder import LadderVAE
from pyro_vae.models.vae import VAE

KINDS = (VAE, ConditionalVAE, LadderVAE)
AnyVAE: TypeAlias = Annotated[
    VAE | ConditionalVAE | LadderVAE, Instance(KINDS, "a VAE, a ConditionalVAE or a LadderVAE")
]
