"""A graph equals the program, or the program is not compiled."""

import random

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.engine.compilation_warning import CompilationWarning
from tests.models.test_vae import small_vae
from tests.support.pyro_programs import both, counts_calls

pytestmark = pytest.mark.usefixtures("double")


def reads_data(x):
    return 1.0 if x.mean() > 0.4 else 2.0


def draws_from_python(x):
    return random.random() + 0.5


def draws_from_numpy(x):
    return np.random.uniform(0.5, 1.5)  # noqa: NPY002


def makes_tensor_from_numpy(x):
    return torch.from_numpy(np.arange(1.0, 7.0))


def reads_array(x):
    return 1.0 + float(x.numpy().mean())


def indexes_by_a_tensor(x):
    return torch.tensor([[1.0], [2.0]])[torch.zeros(()).long()]


def replaces_by_mask(x):
    scale, row = torch.ones(6), x[:, 1].exp()
    chosen = x[:, 0] > 0.4
    scale[chosen] = row[chosen]
    scale[~chosen] = 2.0
    return scale


def selects_by_mask(x):
    scale, row = torch.ones(6), x[:, 1].exp()
    chosen = x[:, 0] > 0.4
    part = row[chosen]
    scale[chosen] = part
    return scale + part.sum()


def changes_what_a_mask_selected_from(x):
    scale, row = torch.ones(6), x[:, 1].exp()
    chosen = x[:, 0] > 0.4
    part = row[chosen]
    row += 1
    scale[chosen] = part
    return scale + row


@pytest.mark.usefixtures("graph_only")
def test_a_branch_on_the_data_takes_the_branch():
    svi = both(reads_data)
    assert 0 < svi.num_compiled_steps < 13


@pytest.mark.usefixtures("graph_only")
@pytest.mark.parametrize(
    ("scale_of", "reason"),
    [
        (draws_from_python, "Python's or numpy's random"),
        (draws_from_numpy, "Python's or numpy's random"),
        (makes_tensor_from_numpy, "tensors of numpy arrays"),
        (reads_array, "into Python by numpy"),
        (indexes_by_a_tensor, r"reads the number in a tensor.*an int, or an index of shape \(1,\)"),
        (selects_by_mask, "the shape of a result depends on the data"),
        (changes_what_a_mask_selected_from, "the shape of a result depends on the data"),
    ],
)
def test_what_cannot_be_compiled_runs_eagerly_and_says_why(scale_of, reason):
    with pytest.warns(CompilationWarning, match=reason):
        svi = both(scale_of)
    assert svi.num_compiled_steps == 0


@pytest.mark.usefixtures("graph_only")
def test_entries_replaced_by_a_mask_are_of_any_number():
    # The number of replaced entries differs from batch to batch.
    assert both(replaces_by_mask).num_compiled_steps == 13


@pytest.mark.usefixtures("graph_only")
def test_a_program_that_counts_its_calls_runs_eagerly():
    with pytest.warns(CompilationWarning, match="it changes 'calls' in each step"):
        svi = both(counts_calls)
    assert svi.num_compiled_steps == 0


@pytest.mark.usefixtures("graph_only")
def test_a_global_tensor_changed_in_place_is_an_input():
    scale = torch.tensor(1.0)
    svi = both(lambda x: scale, lambda i: scale.fill_(1.0 + i))
    assert svi.num_compiled_steps == 13


@pytest.mark.usefixtures("graph_only")
def test_the_step_of_a_vae_does_not_branch():
    """Its losses need not be read: on a GPU, reading one waits for the step to finish."""
    vae = small_vae().double()
    svi = pv.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters()), compile=True)
    x = torch.ones(4, 1, 4, 4)
    for _ in range(4):
        svi.step(x)
    assert svi.num_compiled_steps
    assert not svi._compiler.must_check_loss
