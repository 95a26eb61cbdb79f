"""Programs of which a step has other effects than training, and runs to compare with Pyro's."""

import warnings

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.engine.compilation_warning import CompilationWarning

STEPS = 60


class Net(nn.Module):
    """A VAE; subclasses do something in `decode`, and `left` returns what they leave behind."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)
        self.prepare()

    def prepare(self):
        pass

    def decode(self, z):
        return self.decoder(z)

    def left(self):
        return None

    def observed(self, z, x):
        return dist.Bernoulli(logits=self.decode(z)).to_event(1)

    def model(self, x):
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", self.observed(z, x), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x.nan_to_num()).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def adam(net):
    return pyro.optim.Adam({"lr": 1e-2})


def plain(i, svi, net, x):
    svi.step(x)


def trained(compile, make=Net, step=plain, before=None, optim=adam, loss=None):
    """Return weights, what was left after each step, the error, compiled steps, and warnings.

    Args:
        compile: Whether to compile; None for the step of Pyro.
        make: Class of the network.
        step: Function that takes the step with a number.
        before: Function of the same arguments, called before each step.
        optim: Function of the network that returns the optimizer.
        loss: Objective, or a function for `loss_and_grads`.
    """
    pyro.clear_param_store()
    torch.manual_seed(0)
    net, x = make(), (torch.rand(16, 6) < 0.4).double()
    losses = (pyro.infer.Trace_ELBO(),) if loss is None else loss
    settings = {} if compile is None else {"compile": compile}
    kind = pyro.infer.SVI if compile is None else pv.SVI
    svi, left, error = kind(net.model, net.guide, optim(net), *losses, **settings), [], None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(STEPS):
            if before is not None:
                before(i, svi, net, x)
            try:
                step(i, svi, net, x)
            except (ValueError, RuntimeError) as failure:
                error = error or (i, type(failure))
            left.append(net.left())
    told = [w for w in caught if issubclass(w.category, CompilationWarning)]
    weights = nn.utils.parameters_to_vector(net.parameters()).detach()
    return weights, left, error, getattr(svi, "num_compiled_steps", 0), told


def assert_same(compiled=None, reference=None, **program):
    """The compiled run equals the reference; it is compiled, or a warning says that it is not."""
    (right, expected, stock_error, *_), (weights, left, error, num_compiled, told) = (
        trained(reference, **program), trained(True, **program)
    )  # fmt: skip
    torch.testing.assert_close(weights, right, rtol=0, atol=1e-6)
    assert error == stock_error
    for a, b in zip(left, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert told or num_compiled > STEPS // 2
    if compiled is not None:
        assert (num_compiled > STEPS // 2) == compiled
