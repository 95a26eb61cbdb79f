"""Code that TorchInductor compiles gives the numbers of the graph."""

import functools
import subprocess
import sys

import numpy as np
import pyro
import pytest
import torch

from pyro_vae.engine import inductor
from pyro_vae.svi import SVI
from tests.support.pyro_programs import PROGRAMS, assert_same, run, train_vae
from tests.support.strided_net import TABLE, assert_equal_runs, train_net


@pytest.mark.parametrize("name", ["vae", "mixture"])
@pytest.mark.usefixtures("double")
def test_compiled_equals_stock_pyro_step_by_step(name):
    program, loss = PROGRAMS[name]
    ours = run(SVI, program, loss, compile=True)
    assert_same(ours, run(pyro.infer.SVI, program, loss))
    assert ours[0].num_compiled_steps >= 6


@pytest.mark.usefixtures("double")
def test_the_compiler_keeps_weight_decay_in_the_graph():
    """torch 2.14 drops the scale when it fuses a product with a scaled sum."""
    optim = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1)
    ours, eager = train_vae(optim, True), train_vae(optim, False)
    assert_same(ours, eager)
    (program,) = ours[0]._compiler._programs.values()
    assert program.optimizers is not None


def test_compiled_code_takes_strided_batches_and_priors():
    loc = torch.full((), 0.3).expand(2)
    for batch in (TABLE[:, 2:8], TABLE[0, :6].expand(9, 6)):
        ours = train_net(True, batch, loc, steps=6)
        assert_equal_runs(ours, train_net(False, batch, loc, steps=6))
        assert ours[2].num_compiled_steps == 5


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float64, 2**-52), (torch.float32, 2**-23)])
def test_log_sigmoid_by_log_loses_nothing(dtype, eps):
    """Compare with extended precision, including values with 1 + exp(-|x|) rounded to 1."""
    x = torch.cat([torch.linspace(-200, 200, 4001), torch.tensor([0.0, 1e-8, -1e-8])]).to(dtype)
    actual, _ = inductor._log_sigmoid(x)
    u = np.exp(-np.abs(x.numpy().astype(np.longdouble)))
    expected = np.minimum(x.numpy().astype(np.longdouble), 0) - np.log1p(u)
    error = np.abs(actual.numpy().astype(np.longdouble) - expected)
    tiny = np.finfo(actual.numpy().dtype).tiny  # smaller values are flushed to zero by exp
    assert (error <= 4 * eps * np.abs(expected) + tiny).all()
    certain, _ = inductor._log_sigmoid(torch.tensor([torch.inf, -torch.inf, torch.nan]))
    assert certain[:2].tolist() == [0, -torch.inf]
    assert certain[2].isnan()


# Height and width, new ones, the scale that a program gives, and whether a view repeats pixels.
SIZES = [
    ((7, 7), (14, 14), None, True),
    ((7, 7), (14, 14), 2.0, True),
    ((3, 5), (3, 20), None, True),
    ((4, 4), (4, 4), 1.0, True),
    ((7, 7), (10, 14), None, False),
    ((8, 8), (4, 4), 0.5, False),
    ((2, 2), (4, 4), 2.4, False),  # the same size by another rule
]


@pytest.mark.parametrize(("old", "new", "scale", "by_view"), SIZES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_pixels_are_repeated_as_by_torch(old, new, scale, by_view, channels_last):
    x = torch.rand(2, 3, *old)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    result = inductor._upsampled(x, new, scale, scale)
    assert (result is not NotImplemented) == by_view
    if by_view:
        assert torch.equal(result, torch.ops.aten.upsample_nearest2d(x, new, scale, scale))
        assert new == old or result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("factor", [2, 3])
def test_views_of_repeated_pixels_are_compiled(factor):
    def step(x, weight):
        large = torch.nn.functional.interpolate(x.tanh(), scale_factor=factor)
        return [torch.conv2d(large, weight, padding=1).view(len(x), -1).sum(-1), large.flatten(1)]

    inputs = [torch.rand(2, 3, 4, 4), torch.rand(5, 3, 3, 3)]
    compiled = inductor.compile_graph(inductor.functional(step, inputs), inputs)
    for actual, expected in zip(compiled(*inputs), step(*inputs), strict=True):
        torch.testing.assert_close(actual, expected)


LOADED = """
import sys
import pyro_vae
print([name for name in ("torch._inductor", "torch._functorch.compile_utils", "sympy")
       if name in sys.modules])
"""


def test_importing_the_package_does_not_import_torchs_compiler():
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
