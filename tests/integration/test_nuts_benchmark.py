"""benchmarks/nuts.py: z-scores of two right samplers have a root mean square of one."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "nuts.py"
LATENTS, CHAINS, SAMPLES, REFINED = (40, 10), 2, 250, 2000


@pytest.fixture(scope="module")
def nuts():
    spec = importlib.util.spec_from_file_location("nuts", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("correlation", [-0.6, -0.3, 0.0, 0.5])
def test_z_scores_of_an_autoregression(nuts, correlation):
    """Squares of an autoregression are positively correlated for either sign."""
    random = np.random.default_rng(0)
    state = random.normal(size=(CHAINS, *LATENTS))
    chains = []
    for _ in range(SAMPLES):
        noise = random.normal(size=state.shape)
        state = correlation * state + (1 - correlation**2) ** 0.5 * noise
        chains.append(state)
    refined = random.normal(size=(REFINED, *LATENTS))
    found = nuts.compared(np.stack(chains, 1), refined, np.full(len(refined[0]), REFINED))
    for name in ("means", "standard deviations"):
        assert 0.85 < np.sqrt((found[name] ** 2).mean()) < 1.15, name
