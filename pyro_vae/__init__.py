"""Auto-Encoding Variational Bayes (Kingma & Welling, 2013) on Pyro."""

from pyro_vae import data, distributed, guides, likelihoods, networks, objectives, priors
from pyro_vae.annealed_importance import Annealed, ais, bidirectional
from pyro_vae.calibration import sbc
from pyro_vae.checkpoints import load
from pyro_vae.checks import check
from pyro_vae.collapse import Collapse, collapse
from pyro_vae.distributed import DistributedError
from pyro_vae.elpd import elpd_marginal
from pyro_vae.evaluation import Evaluation, evaluate
from pyro_vae.folders import CheckpointError
from pyro_vae.gaps import Gaps, gaps
from pyro_vae.inspection import from_pyro_svi
from pyro_vae.ladder import LadderVAE
from pyro_vae.mcmc import mcmc_draws
from pyro_vae.mixed import MixedVAE
from pyro_vae.pairs import Pair, PairError
from pyro_vae.parts import Part, resolve_device
from pyro_vae.reports import report
from pyro_vae.svi import SVI
from pyro_vae.training import Fit, TrainingError, fit
from pyro_vae.trust import TrustCard, diagnose
from pyro_vae.vae import VAE

__all__ = [
    "SVI",
    "VAE",
    "Annealed",
    "CheckpointError",
    "Collapse",
    "DistributedError",
    "Evaluation",
    "Fit",
    "Gaps",
    "LadderVAE",
    "MixedVAE",
    "Pair",
    "PairError",
    "Part",
    "TrainingError",
    "TrustCard",
    "ais",
    "bidirectional",
    "check",
    "collapse",
    "data",
    "diagnose",
    "distributed",
    "elpd_marginal",
    "evaluate",
    "fit",
    "from_pyro_svi",
    "gaps",
    "guides",
    "likelihoods",
    "load",
    "mcmc_draws",
    "networks",
    "objectives",
    "priors",
    "report",
    "resolve_device",
    "sbc",
]
__version__ = "0.1.0"
