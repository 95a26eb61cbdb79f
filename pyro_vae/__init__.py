"""Auto-Encoding Variational Bayes (Kingma & Welling, 2013) on Pyro."""

from pyro_vae import data, guides, likelihoods, networks, objectives, priors
from pyro_vae.checkpoints import CheckpointError, load
from pyro_vae.checks import check
from pyro_vae.evaluation import Evaluation, evaluate
from pyro_vae.ladder import LadderVAE
from pyro_vae.mixed import MixedVAE
from pyro_vae.pairs import Pair, PairError
from pyro_vae.parts import Part, resolve_device
from pyro_vae.reports import report
from pyro_vae.svi import SVI
from pyro_vae.training import Fit, TrainingError, fit
from pyro_vae.vae import VAE

__all__ = [
    "SVI",
    "VAE",
    "CheckpointError",
    "Evaluation",
    "Fit",
    "LadderVAE",
    "MixedVAE",
    "Pair",
    "PairError",
    "Part",
    "TrainingError",
    "check",
    "data",
    "evaluate",
    "fit",
    "guides",
    "likelihoods",
    "load",
    "networks",
    "objectives",
    "priors",
    "report",
    "resolve_device",
]
__version__ = "0.1.0"
