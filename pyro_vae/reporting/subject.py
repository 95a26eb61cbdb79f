"""`Subject`: a trained model and its test data, as the figures of a report need them."""

from dataclasses import dataclass

from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.models.any_vae import AnyVAE
from pyro_vae.reporting.rows import sampled


@dataclass(frozen=True)
class Subject:
    """A trained VAE and its test data.

    Attributes:
        vae: The VAE.
        test: Test data on its device.
        shown: Some of the test data.
        context: Their context, as arguments of model and guide after x.
        means: Posterior means of the test data, shape `(num_data, latent_dim)`.
        scales: Posterior standard deviations, of the same shape.
        title: First line of titles.
        seed: Random seed.
    """

    vae: AnyVAE
    test: Dataset
    shown: Tensor
    context: tuple[Tensor, ...]
    means: Tensor
    scales: Tensor
    title: str
    seed: int

    def sample(self, count: int) -> Tensor:
        """Sample x from the model, in the contexts of the test data if it is conditional."""
        return sampled(self.vae, self.test, count)
