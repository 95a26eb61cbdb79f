"""Layers in bfloat16, everything else in float32."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae.svi import SVI
from tests.support.pyro_programs import OPTIMIZERS, assert_same, run, vae

pytestmark = pytest.mark.usefixtures("double")


def test_bfloat16_is_for_layers_only():
    seen = {}

    def model(x):
        layer = pyro.module("layer", linear)
        seen["layer"] = layer(x)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(seen["layer"] + z, 1.0).to_event(2), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.5))

    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    linear = nn.Linear(4, 4)
    x = torch.rand(8, 4)
    exact = linear(x)
    svi = SVI(model, guide, OPTIMIZERS["Adam"], Trace_ELBO(), compile=False, precision="bf16")
    svi.step(x)
    assert seen["layer"].dtype is torch.float32
    assert torch.equal(seen["layer"], seen["layer"].bfloat16().float())
    assert not torch.equal(seen["layer"], exact)
    torch.testing.assert_close(seen["layer"], exact, rtol=0.05, atol=0.05)
    assert linear.weight.dtype is torch.float32


@pytest.mark.usefixtures("graph_only")
def test_compiled_bfloat16_is_eager_bfloat16():
    torch.set_default_dtype(torch.float32)

    def program():
        model, guide, data = vae()
        return model, guide, [(x.float(),) for (x,) in data]

    ours, eager = (
        run(SVI, program, Trace_ELBO, compile=compile, precision="bf16")
        for compile in (True, False)
    )
    assert_same(ours, eager, 1e-5)
    assert ours[0].num_compiled_steps == 7
