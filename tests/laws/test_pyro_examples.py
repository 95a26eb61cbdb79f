"""Programs after Pyro's examples have the losses of `pyro.infer.SVI` if only the import changes."""

import sys
import warnings
from pathlib import Path

import pyro
import pytest

import pyro_vae as pv

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from pyro_examples import EXAMPLES, Run, difference

SLOW = {"examples/air", "examples/dmm.py --num-iafs 1", "examples/hmm.py --model 1 --tmc"}
STEPS = 4


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in EXAMPLES]
)
def test_losses_are_those_of_pyro(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pyro, about its example
        stock, ours = (Run(EXAMPLES[name], kind) for kind in (pyro.infer.SVI, pv.SVI))
        stock.take(STEPS)
        ours.take(STEPS)
    assert len(set(stock.losses)) == STEPS  # the loss is random, or falls
    assert difference(stock, ours) < 1e-5
