"""Steps on batches with every memory layout."""

import warnings

import pytest
import torch

from pyro_vae.engine.call_arguments import split
from pyro_vae.engine.capture import same_strides
from pyro_vae.engine.compilation_warning import CompilationWarning
from pyro_vae.engine.value_reader import NotCompilable
from tests.support.strided_net import LAYOUTS, TABLE, assert_equal_runs, train_net


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_copy_has_the_strides_and_the_values(name):
    tensor = LAYOUTS[name]()
    made = same_strides(tensor)
    assert made.stride() == tensor.stride()
    assert torch.equal(made, tensor)
    assert made.data_ptr() != tensor.data_ptr()


@pytest.mark.usefixtures("graph_only")
@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_batch_in_memory_of_any_form(name):
    batch = LAYOUTS[name]()
    ours = train_net(True, batch)
    assert_equal_runs(ours, train_net(False, batch))
    assert ours[2].num_compiled_steps == 13


def test_compiled_code_gets_values_that_are_computed():
    """It reads memory, in which a lazy conjugate or negative is not computed yet."""
    pair = torch.complex(TABLE, -TABLE)
    lazy = [pair.conj(), pair.conj().imag]
    assert lazy[0].is_conj()
    assert lazy[1].is_neg()
    inputs, _ = split((lazy,), {})
    for computed, value in zip(inputs, lazy, strict=True):
        assert not computed.is_conj()
        assert not computed.is_neg()
        assert torch.equal(computed, value)


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (TABLE.to_sparse(), "torch.sparse_coo"),
        (TABLE.as_subclass(Subclass), "Subclass"),
        (torch.nested.nested_tensor([TABLE[0]], layout=torch.jagged), "jagged|Nested|nested"),
    ],
    ids=["sparse", "subclass", "nested"],
)
def test_the_message_names_the_kind_of_an_argument(value, name):
    with pytest.raises(NotCompilable, match=f"type .*({name})"):
        split((value,), {})


@pytest.mark.usefixtures("graph_only")
@pytest.mark.parametrize(("steps", "warns"), [((20,), False), (range(20, 24), True)])
def test_gradients_of_other_code_are_part_of_the_step(steps, warns):
    def other_code(i, svi):
        if i in steps:
            sum(p.square().sum() for p in svi.parameters).backward()

    batch = TABLE[:, :6].contiguous()
    eager = train_net(False, batch, steps=30, between=other_code)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = train_net(True, batch, steps=30, between=other_code)
    assert_equal_runs(ours, eager)
    assert ours[2].num_compiled_steps == 29 - len(steps)
    assert [("gradients of other code" in str(w.message)) for w in caught] == [True] * warns


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_a_sparse_batch_runs_eagerly_and_says_so(layout):
    batch = TABLE[:, :6].to_sparse(layout=layout)
    with pytest.warns(CompilationWarning, match=r"torch\.sparse"):
        ours = train_net(True, batch)
    assert_equal_runs(ours, train_net(False, batch))
    assert ours[2].num_compiled_steps == 0
