"""Recipes: parts, objective and training schedule that together gave good scores on MNIST.

A recipe builds a VAE for any data by `pyro_vae.suggest`, and has the arguments of `fit` for it.
docs/records.md has the scores of each recipe.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pyro.infer import ELBO

from pyro_vae import schedules
from pyro_vae.arguments import Count, checked, setting
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError
from pyro_vae.models import suggestion
from pyro_vae.models.any_vae import AnyVAE
from pyro_vae.objectives import Beta, ImportanceWeighted, Linear
from pyro_vae.part import Part
from pyro_vae.priors import Flow

__all__ = ["RECIPES", "Recipe"]

Warmups: TypeAlias = Linear | dict[str, Linear] | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model and its training.

    Attributes:
        description: One line.
        parts: Arguments of `pyro_vae.suggest`.
        epochs: Number of passes over the training data.
        batch_size: Size of a minibatch.
        learning_rate: Highest learning rate of Adam.
        schedule: Name of a function of `pyro_vae.schedules`.
        num_particles: Number of samples in the objective. With 1 it is the ELBO, otherwise the
            importance-weighted bound with doubly reparameterized gradients.
        warmup: Share of the steps in which the weight of the KL divergence grows from 0 to 1; or
            one share for each layer of a `LadderVAE`, from x upwards.
        average: Average of the weights, as in `fit`.

    Example:
        >>> import pyro_vae as pv
        >>> train, test = pv.data.load("mnist-5k")
        >>> recipe = pv.recipes.RECIPES["gated-vamp"]
        >>> vae = recipe.build(train, show=False)
        >>> settings = recipe.settings(len(train), epochs=1)
        >>> sorted(settings)
        ['average', 'batch_size', 'epochs', 'learning_rate', 'objective', 'schedule']
        >>> fit = pv.fit(vae, train[:200], **settings)

    See also: `pyro_vae.suggest`, `pyro_vae.fit`, `pyro_vae.schedules`.
    """

    description: str
    parts: Mapping[str, object]
    epochs: int
    batch_size: int = 100
    learning_rate: float = 1e-3
    schedule: str = "one_cycle"
    num_particles: int = 1
    warmup: float | tuple[float, ...] = 0.0
    average: str | None = "ema"

    @checked
    def build(self, data: Dataset, *, show: bool = True, **parts: object) -> AnyVAE:
        """Build the VAE for some data.

        Args:
            data: Training data.
            show: Whether to print the code that builds it.
            **parts: Arguments of `pyro_vae.suggest` in place of those of the recipe.

        Raises:
            DataError: If the recipe warms up layers, and `latent_dim` has another number of sizes.
        """
        given: dict[str, Any] = {**self.parts, **parts}
        sizes = given["latent_dim"]
        sizes = [sizes] if isinstance(sizes, int) else sizes
        if isinstance(self.warmup, tuple) and len(sizes) != len(self.warmup):
            raise DataError(
                f"this recipe is for {len(self.warmup)} layers of latents; expected as many sizes, "
                f"got {setting('latent_dim', sizes)}"
            )
        return suggestion.suggest(data, show=show, **given)

    @checked
    def settings(
        self, num_data: Count, *, epochs: Count | None = None, batch_size: Count | None = None
    ) -> dict[str, Any]:
        """Return the arguments of `fit`.

        Args:
            num_data: Number of training data.
            epochs: Number of passes over the data in place of that of the recipe.
            batch_size: Size of a minibatch in place of that of the recipe.
        """
        epochs, batch_size = epochs or self.epochs, batch_size or self.batch_size
        settings = {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": self.learning_rate,
            "schedule": getattr(schedules, self.schedule),
            "average": self.average,
        }
        objective = self._objective(self._warmups(num_data, epochs, batch_size))
        return settings if objective is None else {**settings, "objective": objective}

    @checked
    def code(
        self, num_data: Count, *, epochs: Count | None = None, batch_size: Count | None = None
    ) -> str:
        """Return the call of `fit` with `settings` as code."""
        settings = self.settings(num_data, epochs=epochs, batch_size=batch_size)
        settings["schedule"] = f"pv.schedules.{self.schedule}"
        settings["average"] = repr(self.average)
        if "objective" in settings:
            warmups = self._warmups(num_data, settings["epochs"], settings["batch_size"])
            settings["objective"] = self._objective_code(warmups)
        lines = [f"    {name}={value},\n" for name, value in settings.items()]
        return f"fit = pv.fit(\n    vae,\n    train,\n    validation=validation,\n{''.join(lines)})"

    def _warmups(self, num_data: int, epochs: int, batch_size: int) -> Warmups:
        steps = epochs * -(-num_data // batch_size)
        if isinstance(self.warmup, tuple):
            layers = enumerate(self.warmup, start=1)
            return {f"z{i}": Linear(max(1, round(share * steps))) for i, share in layers}
        return Linear(round(self.warmup * steps)) if round(self.warmup * steps) else None

    def _objective(self, warmups: Warmups) -> ELBO | None:
        """Return the objective; None for the ELBO with one particle."""
        bound = None
        if self.num_particles > 1:
            bound = ImportanceWeighted(
                self.num_particles,
                doubly_reparameterized=True,
                vectorize_particles=True,
                max_plate_nesting=1,
            )
        return bound if warmups is None else Beta(warmups, bound)

    def _objective_code(self, warmups: Warmups) -> str:
        bound = ""
        if self.num_particles > 1:
            options = "doubly_reparameterized=True, vectorize_particles=True, max_plate_nesting=1"
            bound = f"pv.objectives.ImportanceWeighted({self.num_particles}, {options})"
        if warmups is None:
            return bound
        if isinstance(warmups, Linear):
            beta = f"pv.objectives.Linear({warmups.num_steps})"
        else:
            each = (f'"{z}": pv.objectives.Linear({w.num_steps})' for z, w in warmups.items())
            beta = f"{{{', '.join(each)}}}"
        return f"pv.objectives.Beta({beta}{', ' if bound else ''}{bound})"


def _autoregressive(latent_dim: int, guide: Part, data: Dataset) -> Part:
    return Flow(latent_dim, ["affine_autoregressive"] * 3)


_VAMP: Callable[..., Part] = functools.partial(suggestion.vamp, num_pseudo_inputs=500)
_GATED: dict[str, object] = {
    "latent_dim": 40, "hidden": [300, 300], "conv": False, "network": {"block": "gated"}
}  # fmt: skip
_TANH: dict[str, object] = {"latent_dim": 50, "hidden": [200, 200], "conv": False}
_RELU: dict[str, object] = {
    "latent_dim": 40, "hidden": [400], "conv": False, "network": {"activation": "relu"}
}  # fmt: skip
_LADDER: dict[str, object] = {**_GATED, "latent_dim": [40, 40]}
_CONVOLUTIONAL: dict[str, object] = {
    "latent_dim": 64,
    "conv": True,
    "network": {"channels": [64, 64, 128], "stem": 16},
    "prior": _autoregressive,
    "guide": "flow",
}

RECIPES: dict[str, Recipe] = {
    "tanh": Recipe(
        description="2 x 200 tanh, 50 latents, ELBO: the network of Burda et al. (2016)",
        parts=_TANH,
        epochs=1000,
        learning_rate=2e-3,
    ),
    "tanh-iwae-5": Recipe(
        description="the same network, importance-weighted bound with 5 samples",
        parts=_TANH,
        epochs=500,
        learning_rate=2e-3,
        num_particles=5,
    ),
    "tanh-iwae-50": Recipe(
        description="the same network, importance-weighted bound with 50 samples",
        parts=_TANH,
        epochs=300,
        learning_rate=2e-3,
        num_particles=50,
    ),
    "relu": Recipe(
        description="1 x 400 ReLU, 40 latents, ELBO: the network of pythae's reproductions",
        parts=_RELU,
        epochs=500,
        learning_rate=2e-3,
    ),
    "relu-vamp": Recipe(
        description="the same network, VampPrior",
        parts={**_RELU, "prior": _VAMP},
        epochs=300,
        learning_rate=2e-3,
    ),
    "relu-iwae-50": Recipe(
        description="the same network, importance-weighted bound with 50 samples",
        parts=_RELU,
        epochs=200,
        learning_rate=2e-3,
        num_particles=50,
    ),
    "gated": Recipe(
        description="2 x 300 gated, 40 latents: the network of Tomczak & Welling (2018)",
        parts=_GATED,
        epochs=500,
        warmup=0.1,
    ),
    "gated-vamp": Recipe(
        description="the same network, VampPrior with 500 pseudo-inputs",
        parts={**_GATED, "prior": _VAMP},
        epochs=300,
        warmup=0.1,
    ),
    "gated-flow": Recipe(
        description="the same network, a flow as the prior",
        parts={**_GATED, "prior": _autoregressive},
        epochs=300,
        warmup=0.1,
    ),
    "ladder": Recipe(
        description="2 x 300 gated, two layers of 40 latents, a warm-up for each: a LadderVAE",
        parts=_LADDER,
        epochs=300,
        warmup=(0.1, 0.2),
    ),
    "ladder-vamp": Recipe(
        description="the same networks, VampPrior of the upper layer with 500 pseudo-inputs",
        parts={**_LADDER, "prior": _VAMP},
        epochs=200,
        warmup=(0.1, 0.2),
    ),
    "ladder-flow": Recipe(
        description="the same networks, a flow as the prior of the upper layer",
        parts={**_LADDER, "prior": _autoregressive},
        epochs=300,
        warmup=(0.1, 0.2),
    ),
    "conv-flow": Recipe(
        description="residual convolutions, 64 latents, flows as prior and guide; for a GPU",
        parts=_CONVOLUTIONAL,
        epochs=400,
        batch_size=200,
    ),
    "quick": Recipe(
        description="1 x 500 SiLU, 40 latents, a flow as the prior: for minutes on one core",
        parts={
            "latent_dim": 40,
            "hidden": [500],
            "conv": False,
            "network": {"activation": "silu"},
            "prior": _autoregressive,
        },
        epochs=30,
        learning_rate=2e-3,
    ),
}
