"""Auto-Encoding Variational Bayes (Kingma & Welling, 2013) on Pyro.

Public names are imported when they are first used (PEP 562), so that `import pyro_vae` loads
neither torch, matplotlib nor ArviZ.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyro_vae import (
        data,
        distributed,
        explorer,
        guides,
        hmc,
        likelihoods,
        networks,
        objectives,
        plots,
        priors,
        recipes,
        schedules,
        sklearn,
    )
    from pyro_vae.arguments.checks import ArgumentError
    from pyro_vae.checkpointing.model_folder import load
    from pyro_vae.datatree.elpd import elpd_marginal
    from pyro_vae.datatree.from_pyro_svi import from_pyro_svi
    from pyro_vae.diagnostics.ais import Annealed, ais, bidirectional
    from pyro_vae.diagnostics.collapse import Collapse, collapse
    from pyro_vae.diagnostics.diagnose import diagnose
    from pyro_vae.diagnostics.gaps import Gaps, gaps
    from pyro_vae.diagnostics.mcmc import mcmc_draws
    from pyro_vae.diagnostics.sbc import sbc
    from pyro_vae.diagnostics.trust_card import TrustCard
    from pyro_vae.distributed import DistributedError
    from pyro_vae.engine.compilation_warning import CompilationWarning
    from pyro_vae.evaluation import Evaluation, evaluate
    from pyro_vae.models.conditional import ConditionalVAE
    from pyro_vae.models.ladder import LadderEncoder, LadderVAE
    from pyro_vae.models.mixed import MixedVAE
    from pyro_vae.models.suggestion import suggest
    from pyro_vae.models.vae import VAE
    from pyro_vae.pairs.check import check
    from pyro_vae.pairs.chunking import MemoryWarning
    from pyro_vae.pairs.pair import Pair, PairError
    from pyro_vae.part import Part
    from pyro_vae.refinement.posterior import RefinedPosterior
    from pyro_vae.refinement.refine import refine
    from pyro_vae.reporting.run_report import report
    from pyro_vae.runtime.devices import resolve_device
    from pyro_vae.runtime.files import CheckpointError
    from pyro_vae.svi import SVI
    from pyro_vae.tracking import TensorBoard, Tracker
    from pyro_vae.training.fit import fit
    from pyro_vae.training.nan_recovery import TrainingError
    from pyro_vae.training.result import Fit
    from pyro_vae.training.step_cost import CostWarning

__all__ = [
    "SVI",
    "VAE",
    "Annealed",
    "ArgumentError",
    "CheckpointError",
    "Collapse",
    "CompilationWarning",
    "ConditionalVAE",
    "CostWarning",
    "DistributedError",
    "Evaluation",
    "Fit",
    "Gaps",
    "LadderEncoder",
    "LadderVAE",
    "MemoryWarning",
    "MixedVAE",
    "Pair",
    "PairError",
    "Part",
    "RefinedPosterior",
    "TensorBoard",
    "Tracker",
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
    "explorer",
    "fit",
    "from_pyro_svi",
    "gaps",
    "guides",
    "hmc",
    "likelihoods",
    "load",
    "mcmc_draws",
    "networks",
    "objectives",
    "plots",
    "priors",
    "recipes",
    "refine",
    "report",
    "resolve_device",
    "sbc",
    "schedules",
    "sklearn",
    "suggest",
]
__version__ = "0.1.0"

# The module that defines each public name; a public module is absent.
_MODULE_OF = {
    "SVI": "svi",
    "VAE": "models.vae",
    "Annealed": "diagnostics.ais",
    "ArgumentError": "arguments.checks",
    "CheckpointError": "runtime.files",
    "Collapse": "diagnostics.collapse",
    "CompilationWarning": "engine.compilation_warning",
    "ConditionalVAE": "models.conditional",
    "CostWarning": "training.step_cost",
    "DistributedError": "distributed",
    "Evaluation": "evaluation",
    "Fit": "training.result",
    "Gaps": "diagnostics.gaps",
    "LadderEncoder": "models.ladder",
    "LadderVAE": "models.ladder",
    "MemoryWarning": "pairs.chunking",
    "MixedVAE": "models.mixed",
    "Pair": "pairs.pair",
    "PairError": "pairs.pair",
    "Part": "part",
    "RefinedPosterior": "refinement.posterior",
    "TensorBoard": "tracking",
    "Tracker": "tracking",
    "TrainingError": "training.nan_recovery",
    "TrustCard": "diagnostics.trust_card",
    "ais": "diagnostics.ais",
    "bidirectional": "diagnostics.ais",
    "check": "pairs.check",
    "collapse": "diagnostics.collapse",
    "diagnose": "diagnostics.diagnose",
    "elpd_marginal": "datatree.elpd",
    "evaluate": "evaluation",
    "fit": "training.fit",
    "from_pyro_svi": "datatree.from_pyro_svi",
    "gaps": "diagnostics.gaps",
    "load": "checkpointing.model_folder",
    "mcmc_draws": "diagnostics.mcmc",
    "refine": "refinement.refine",
    "report": "reporting.run_report",
    "resolve_device": "runtime.devices",
    "sbc": "diagnostics.sbc",
    "suggest": "models.suggestion",
}
# `load` finds classes among the imported ones, so it imports the modules that define parts.
_MODULES_OF_PARTS = (
    "data",
    "guides",
    "likelihoods",
    "models.conditional",
    "models.ladder",
    "models.mixed",
    "models.vae",
    "networks",
    "priors",
)


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "load":
        for module in _MODULES_OF_PARTS:
            importlib.import_module(f"{__name__}.{module}")
    if name not in _MODULE_OF:
        return importlib.import_module(f"{__name__}.{name}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
