"""Steps on batches with every memory layout."""

import pytest
import torch

from pyro_vae.engine.capture import same_strides
from pyro_vae.engine.compilation_warning import CompilationWarning
from tests.support.strided_net import LAYOUTS, TABLE, assert_equal_runs, train_net


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_copy_has_the_strides_and_the_values(name):
    tensor = LAYOUTS[name]()
    made = same_strides(tensor)
    assert made.stride() == tensor.stride()
    assert torch.equal(made, tensor)
    assert made.data_ptr() != tensor.data_ptr()


@pytest.mark.usefixtures("graph_only")
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_batch_in_memory_of_any_form(name):
    batch = LAYOUTS[name]()
    ours = train_net(True, batch)
    assert_equal_runs(ours, train_net(False, batch))
    assert ours[2].num_compiled_steps == 13


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_a_sparse_batch_runs_eagerly_and_says_so(layout):
    batch = TABLE[:, :6].to_sparse(layout=layout)
    with pytest.warns(CompilationWarning, match=r"torch\.sparse"):
        ours = train_net(True, batch)
    assert_equal_runs(ours, train_net(False, batch))
    assert ours[2].num_compiled_steps == 0
