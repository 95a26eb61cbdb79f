"""The scikit-learn estimator: `pyro_vae.sklearn.VAE`."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Self, TypeAlias, cast

import numpy as np
import torch
from narwhals.typing import IntoDataFrame
from numpy.typing import ArrayLike

from pyro_vae.data.conversion import without_mask
from pyro_vae.data.errors import DataError
from pyro_vae.data.sources import frames, tables
from pyro_vae.data.sources.table_schema import TableSchema
from pyro_vae.distributions.entrywise import point_estimate
from pyro_vae.evaluation import evaluate
from pyro_vae.models import vae
from pyro_vae.models.base import mean_of
from pyro_vae.models.suggestion import suggest
from pyro_vae.runtime.devices import device_of
from pyro_vae.svi import Compile
from pyro_vae.training.fit import fit
from pyro_vae.training.result import Fit

try:
    from sklearn.base import BaseEstimator, DensityMixin, TransformerMixin
    from sklearn.utils import Tags, check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "pyro_vae.sklearn needs scikit-learn: pip install 'pyro-vae[sklearn]'"
    ) from error

RandomState: TypeAlias = int | np.random.RandomState | None


def seed_of(random_state: RandomState) -> int:
    """Return a seed of torch for a random state of scikit-learn."""
    return int(check_random_state(random_state).randint(2**31 - 1))


class VAE(TransformerMixin, DensityMixin, BaseEstimator):
    """A variational autoencoder for tables, as an estimator of scikit-learn.

    `fit` builds the VAE of `pyro_vae.suggest` and trains it. Columns of a frame of pandas or polars
    are modelled by their kinds, see `pyro_vae.data.open`; columns of an array are real numbers.
    Missing values are NaN or null.

    Args:
        latent_dim: Number of latents; by default a third of the columns, from 2 to 20.
        hidden: Sizes of the hidden layers of the encoder; the decoder has them reversed.
        prior: Name of the prior, as for `suggest`.
        guide: Name of the guide, as for `suggest`.
        epochs: Number of passes over the data.
        batch_size: Number of rows in a minibatch.
        learning_rate: Learning rate of Adam.
        validation_fraction: Share of the rows that are held out to stop early; by default none.
        patience: Number of epochs without a better validation ELBO after which training stops.
        num_samples: Number of samples of each row for `score_samples` and `impute`.
        columns: Kinds of columns by name, which override the rules. Columns of an array are named
            `x0`, `x1`, ....
        random_state: Seed, or a `numpy.random.RandomState`, of initial weights and training.
        device: Device, such as `"cuda"`; by default the CPU.
        compile: Whether to compile training steps, as for `pyro_vae.fit`.

    Attributes:
        vae_: The trained `pyro_vae.VAE`. Its `schema` describes the columns.
        fit_: The history of the training, a `pyro_vae.Fit`.
        n_features_in_: Number of columns.
        feature_names_in_: Names of the columns, if all are text.

    Raises:
        DataError: If a column cannot be modelled (raised by `fit`).

    Example:
        >>> import numpy as np
        >>> import pyro_vae as pv
        >>> x = np.random.default_rng(0).normal(size=(60, 4))
        >>> estimator = pv.sklearn.VAE(latent_dim=2, epochs=2, random_state=0).fit(x)
        >>> estimator.transform(x).shape, estimator.score_samples(x).shape
        ((60, 2), (60,))

    See also: `pyro_vae.suggest`, `pyro_vae.VAE`.
    """

    def __init__(
        self,
        latent_dim: int | Sequence[int] | None = None,
        *,
        hidden: Sequence[int] | None = None,
        prior: str = "standard-normal",
        guide: str = "diagonal-normal",
        epochs: int = 300,
        batch_size: int = 128,
        learning_rate: float = 5e-3,
        validation_fraction: float = 0.0,
        patience: int = 20,
        num_samples: int = 100,
        columns: Mapping[str, str] | None = None,
        random_state: RandomState = None,
        device: str | None = None,
        compile: Compile = False,
    ) -> None:
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.prior = prior
        self.guide = guide
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.num_samples = num_samples
        self.columns = columns
        self.random_state = random_state
        self.device = device
        self.compile = compile

    def fit(self, X: ArrayLike | IntoDataFrame, y: object = None) -> Self:
        """Build and train a VAE.

        Args:
            X: Frame, or array of shape `(num_data, num_columns)`, with NaN for missing values.
            y: Not used.

        Raises:
            DataError: If a column cannot be modelled.
        """
        X = self._checked(X, reset=True)
        kinds = dict(self.columns or {})
        if isinstance(X, np.ndarray):
            kinds = {**{f"x{i}": "real" for i in range(X.shape[1])}, **kinds}
        data = tables.read(X, columns=kinds)
        seed = seed_of(self.random_state)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            built = suggest(
                data,
                self.latent_dim,
                hidden=self.hidden,
                prior=self.prior,
                guide=self.guide,
                show=False,
            )
            self.vae_ = cast("vae.VAE", built)  # tables have no context
        self._like = X[:0] if isinstance(X, np.ndarray) else frames.read(X)[:0].to_native()
        held_out = self.validation_fraction > 0
        train, validation = data.hold_out(self.validation_fraction) if held_out else (data, None)
        self.fit_: Fit = fit(
            self.vae_,
            train,
            validation=validation,
            patience=self.patience if held_out else None,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=seed,
            device=self.device,
            compile=self.compile,
            progress=False,
        )
        self._seed = seed
        return self

    def transform(self, X: ArrayLike | IntoDataFrame) -> np.ndarray:
        """Return the posterior means E[z|x], shape `(num_data, latent_dim)`."""
        X = self._checked(X)
        with torch.no_grad(), self._seeded(None):
            z = mean_of(self.vae_.encode(X), self.num_samples)
        return z.cpu().double().numpy()

    def inverse_transform(self, X: ArrayLike) -> np.ndarray | IntoDataFrame:
        """Return E[x|z] in the form of the training data, with the most probable levels.

        Args:
            X: Latents, shape `(num_data, latent_dim)`.
        """
        check_is_fitted(self)
        z = torch.tensor(np.asarray(X, dtype=np.float64), dtype=torch.float32)
        with torch.no_grad():
            x = point_estimate(self.vae_.decode(z.to(device_of(self.vae_))))
        return self._schema.restore(x, like=self._like)

    def score_samples(self, X: ArrayLike | IntoDataFrame, y: object = None) -> np.ndarray:
        """Return an estimate of log p(x) for each row, in nats, in the unit of the data.

        It is the importance-weighted bound with `num_samples` samples. Its expectation is at most
        log p(x).
        """
        X = self._checked(X)
        scores = evaluate(
            self.vae_,
            X,
            num_samples=self.num_samples,
            seed=self._seed,
            progress=False,
        )
        return scores.log_likelihood.astype(np.float64)

    def score(self, X: ArrayLike | IntoDataFrame, y: object = None) -> float:
        """Return the mean of `score_samples`."""
        return float(self.score_samples(X).mean())

    def sample(
        self, n_samples: int = 1, random_state: RandomState = None
    ) -> np.ndarray | IntoDataFrame:
        """Sample rows from p(x), in the form of the training data."""
        check_is_fitted(self)
        with self._seeded(random_state):
            x = self.vae_.sample(n_samples)
        return self._schema.restore(x, like=self._like)

    def impute(
        self, X: ArrayLike | IntoDataFrame, random_state: RandomState = None
    ) -> np.ndarray | IntoDataFrame:
        """Return X with missing values replaced by the median, or the most frequent level.

        See also: `pyro_vae.VAE.impute`.
        """
        X = self._checked(X)
        with self._seeded(random_state):
            return self.vae_.impute(X, self.num_samples)

    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:
        """Return the names of the latents: z0, z1, ...."""
        check_is_fitted(self)
        (latent_dim,) = self.vae_.model.prior().event_shape
        return np.array([f"z{i}" for i in range(latent_dim)], dtype=object)

    @property
    def _schema(self) -> TableSchema:
        return cast(TableSchema, self.vae_.schema)

    def _checked(
        self, X: ArrayLike | IntoDataFrame, reset: bool = False
    ) -> np.ndarray | IntoDataFrame:
        """Return X as a frame or an array of numbers, after scikit-learn's checks."""
        if not reset:
            check_is_fitted(self)
        if not frames.is_frame(X):
            X = without_mask(X) if isinstance(X, np.ndarray) else X
            return validate_data(self, X, reset=reset, ensure_all_finite="allow-nan")
        validate_data(self, X, reset=reset, skip_check_array=True)
        if not len(X) or not len(X.columns):
            shape = len(X), len(X.columns)
            raise DataError(f"expected a table of at least one row and column, got {shape}")
        return X

    @contextlib.contextmanager
    def _seeded(self, random_state: RandomState) -> Iterator[None]:
        """Draw from torch's generator with a seed, by default that of `fit`."""
        with torch.random.fork_rng():
            seed = self._seed if random_state is None else seed_of(random_state)
            torch.manual_seed(seed)
            yield

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        # `score_samples` is a Monte Carlo estimate, and the noise of a row depends on its position.
        tags.non_deterministic = True
        return tags
