"""Layers of torch in an encoder: the compiled step equals Pyro's, or says why there is none."""

import numpy as np
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroOptim
from torch import nn

import pyro_vae as pv
from pyro_vae.engine.compilation_warning import CompilationWarning

pytestmark = pytest.mark.usefixtures("graphs_in_double")
DIM = 6


class Moved(nn.Module):
    """A layer between two permutations of the dimensions of its input."""

    def __init__(self, layer, *order, shape=(-1, 2, 3, 2)):
        super().__init__()
        self.layer, self.order, self.shape = layer, order, shape

    def forward(self, x):
        x = x.reshape(self.shape)
        back = [self.order.index(i) for i in range(x.dim())]
        return self.layer(x.permute(self.order)).permute(back).flatten(1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(1, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)

    def forward(self, x):
        return self.layer(self.first(x.unsqueeze(-1)))[:, :3].flatten(1)


class Words(nn.Module):
    def __init__(self, kind, **settings):
        super().__init__()
        self.layer = kind(2 * DIM, 12, **settings)

    def forward(self, x):
        found = self.layer((x > 0.5).long() + 2 * torch.arange(DIM))
        return found.sum(1) if found.dim() == 3 else found


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = kind(1, 12, batch_first=True)

    def forward(self, x):
        return self.layer(x.unsqueeze(-1))[0][:, -1]


def moved(layer, *order):
    return lambda: nn.Sequential(nn.Linear(DIM, 12), Moved(layer(), *order))


LAYERS = {
    "dropout, time first": moved(lambda: nn.Dropout(0.3), 0, 2, 1, 3),
    "dropout, batch last": moved(lambda: nn.Dropout(0.3), 3, 1, 2, 0),
    "dropout, all reversed": moved(lambda: nn.AlphaDropout(0.3), 3, 2, 1, 0),
    "attention with dropout": Attention,
    "GRU": lambda: Recurrent(nn.GRU),
    "Embedding": lambda: Words(nn.Embedding),
    "BatchNorm1d": lambda: nn.Sequential(nn.Linear(DIM, 12), nn.BatchNorm1d(12)),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(DIM, 12)),
}
SPARSE = {
    "Embedding": lambda: Words(nn.Embedding, sparse=True),
    "EmbeddingBag": lambda: Words(nn.EmbeddingBag, sparse=True),
}


class SGD(PyroOptim):
    """Plain gradient steps in Pyro."""

    def __init__(self):
        super().__init__(torch.optim.SGD, {"lr": 1e-3})


def losses(build, kind, optim, **settings):
    torch.manual_seed(0)
    encoder = nn.Sequential(build(), nn.Linear(12, 4))
    likelihood = pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], DIM))
    vae = pv.VAE(pv.priors.StandardNormal(2), likelihood, pv.guides.DiagonalNormal(encoder))
    x = torch.rand(4, DIM).round()
    svi = kind(vae.model, vae.guide, optim(vae), Trace_ELBO(), **settings)
    return [svi.step(x) for _ in range(4)], svi


def ours(build):
    def optim(vae):
        return torch.optim.SGD(vae.parameters(), lr=1e-3)

    return losses(build, pv.SVI, optim, compile=True)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_compiled(name):
    found, svi = ours(LAYERS[name])
    expected, _ = losses(LAYERS[name], SVI, lambda vae: SGD())
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert svi.num_compiled_steps >= 2


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_gradients_run_eagerly_and_say_so(name):
    with pytest.warns(CompilationWarning, match="a parameter has sparse gradients"):
        found, svi = ours(SPARSE[name])
    expected, _ = losses(SPARSE[name], SVI, lambda vae: SGD())
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert svi.num_compiled_steps == 0
