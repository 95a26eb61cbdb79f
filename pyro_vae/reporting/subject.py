"""`Subject`: a trained model and its test data, as the figures of a report need them."""

from dataclasses import dataclass

from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.models.vae import VAE


@dataclass(frozen=True)
class Subject:
    """A trained VAE and its test data.

    Attributes:
        vae: The VAE.
        test: Test data on its device.
        shown: Some of the test data.
        means: Posterior means of the test data, shape `(num_data, latent_dim)`.
        scales: Posterior standard deviations, of the same shape.
        title: First line of titles.
        seed: Random seed.
    """

    vae: VAE
    test: Dataset
    shown: Tensor
    means: Tensor
    scales: Tensor
    title: str
    seed: int
