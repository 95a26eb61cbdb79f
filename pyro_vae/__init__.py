"""Auto-Encoding Variational Bayes (Kingma & Welling, 2013) on Pyro."""

from pyro_vae import data, distributed, guides, likelihoods, networks, objectives, priors
from pyro_vae.checkpointing.model_folder import load
from pyro_vae.datatree.elpd import elpd_marginal
from pyro_vae.datatree.from_pyro_svi import from_pyro_svi
from pyro_vae.diagnostics.ais import Annealed, ais, bidirectional
from pyro_vae.diagnostics.collapse import Collapse, collapse
from pyro_vae.diagnostics.gaps import Gaps, gaps
from pyro_vae.diagnostics.mcmc import mcmc_draws
from pyro_vae.diagnostics.sbc import sbc
from pyro_vae.diagnostics.trust_card import TrustCard, diagnose
from pyro_vae.distributed import DistributedError
from pyro_vae.evaluation import Evaluation, evaluate
from pyro_vae.models.ladder import LadderVAE
from pyro_vae.models.mixed import MixedVAE
from pyro_vae.models.vae import VAE
from pyro_vae.pairs.check import check
from pyro_vae.pairs.pair import Pair, PairError
from pyro_vae.part import Part
from pyro_vae.reporting.run_report import report
from pyro_vae.runtime.devices import resolve_device
from pyro_vae.runtime.files import CheckpointError
from pyro_vae.svi import SVI
from pyro_vae.training.fit import fit
from pyro_vae.training.nan_recovery import TrainingError
from pyro_vae.training.result import Fit

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
