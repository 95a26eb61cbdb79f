"""Programs after examples of Pyro's repository with neural networks, in smaller sizes.

See `pyro_programs`: data are synthetic, and each function returns a step.
"""

import functools
import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import affine_autoregressive
from pyro.infer import (
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.optim import Adam, ClippedAdam, MultiStepLR
from pyro_programs import Step, example
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(*sizes: int, activation: type[nn.Module] = nn.Softplus) -> nn.Sequential:
    """Return linear layers with activations between them."""
    layers = [nn.Linear(m, n) for m, n in itertools.pairwise(sizes)]
    hidden = [part for layer in layers[:-1] for part in (layer, activation())]
    return nn.Sequential(*hidden, layers[-1])


class VAE(nn.Module):
    """The class of `examples/vae/vae.py`."""

    def __init__(self, latents: int = 20, hidden: int = 100) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(784, hidden, 2 * latents), mlp(latents, hidden, 784)
        self.latents = latents

    def model(self, x: Tensor) -> Tensor:
        """Decode a latent of the unit normal."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            shape = torch.Size((x.shape[0], self.latents))
            z_loc, z_scale = x.new_zeros(shape), x.new_ones(shape)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            probs: Tensor = torch.sigmoid(self.decoder(z))
            likelihood = dist.Bernoulli(probs, validate_args=False).to_event(1)
            pyro.sample("obs", likelihood, obs=x)
            return probs

    def guide(self, x: Tensor) -> None:
        """Encode."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


def images(batch: int, num_batches: int = 5) -> Any:
    """Return an endless iterator over minibatches of images."""
    data = (torch.rand(num_batches * batch, 784) < 0.2).float()
    return itertools.cycle(data.split(batch))


@example("examples/vae/vae.py")
def vae(SVI: Any) -> Step:
    """A variational autoencoder, batch 128."""
    program, batches = VAE(), images(128)
    svi = SVI(program.model, program.guide, Adam({"lr": 1.0e-3}), loss=Trace_ELBO())
    return lambda: svi.step(next(batches))


class SSVAE(nn.Module):
    """The class of `examples/vae/ss_vae_M2.py`."""

    def __init__(self, latents: int = 10, hidden: int = 50) -> None:
        super().__init__()
        self.latents, self.multiplier = latents, 46
        self.encoder_y = nn.Sequential(mlp(784, hidden, 10), nn.Softmax(dim=-1))
        self.encoder_z = mlp(784 + 10, hidden, 2 * latents)
        self.decoder = nn.Sequential(mlp(latents + 10, hidden, 784), nn.Sigmoid())

    def model(self, xs: Tensor, ys: Tensor | None = None) -> Tensor:
        """Decode a latent and a label."""
        pyro.module("ss_vae", self)
        batch, options = xs.size(0), {"dtype": xs.dtype, "device": xs.device}
        with pyro.plate("data"):
            loc, scale = (f(batch, self.latents, **options) for f in (torch.zeros, torch.ones))
            zs = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            alpha = torch.ones(batch, 10, **options) / 10.0
            ys = pyro.sample("y", dist.OneHotCategorical(alpha), obs=ys)
            shape = torch.broadcast_shapes(zs.shape[:-1], ys.shape[:-1])
            joint = [value.expand(*shape, value.shape[-1]) for value in (zs, ys)]
            probs: Tensor = self.decoder(torch.cat(joint, -1))
            pyro.sample("x", dist.Bernoulli(probs, validate_args=False).to_event(1), obs=xs)
            return probs

    def guide(self, xs: Tensor, ys: Tensor | None = None) -> None:
        """Sample the label if it is unknown, and the latent."""
        with pyro.plate("data"):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(self.encoder_y(xs)))
            joint = torch.cat([xs.expand(*ys.shape[:-1], 784), ys], -1)
            loc, log_scale = self.encoder_z(joint).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def model_classify(self, xs: Tensor, ys: Tensor | None = None) -> None:
        """Score known labels."""
        pyro.module("ss_vae", self)
        with pyro.plate("data"):
            if ys is not None:
                alpha = self.encoder_y(xs)
                with pyro.poutine.scale(scale=self.multiplier):
                    pyro.sample("y_aux", dist.OneHotCategorical(alpha), obs=ys)

    def guide_classify(self, xs: Tensor, ys: Tensor | None = None) -> None:
        """Sample nothing."""


@example("examples/vae/ss_vae_M2.py -enum parallel --aux-loss")
def semi_supervised(SVI: Any) -> Step:
    """Two SVIs with one optimizer and shared networks; every fourth batch has labels."""
    program, optimizer, batches = SSVAE(), Adam({"lr": 4.2e-4, "betas": (0.9, 0.999)}), images(50)
    guide = config_enumerate(program.guide, "parallel", expand=True)
    elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    losses = [
        SVI(program.model, guide, optimizer, loss=elbo),
        SVI(program.model_classify, program.guide_classify, optimizer, loss=Trace_ELBO()),
    ]
    ys, count = F.one_hot(torch.randint(10, (50,)), 10).float(), itertools.count()

    def step() -> float:
        args = (next(batches), ys) if next(count) % 4 == 1 else (next(batches),)
        return float(sum(svi.step(*args) for svi in losses))

    return step


class ProdLDA(nn.Module):
    """The networks of `tutorial/prodlda`: batch norm and dropout in model and guide."""

    def __init__(self, words: int = 200, topics: int = 5, hidden: int = 50) -> None:
        super().__init__()
        self.topics = topics
        self.encoder, self.drop = mlp(words, hidden, hidden), nn.Dropout(0.2)
        self.loc, self.log_variance = nn.Linear(hidden, topics), nn.Linear(hidden, topics)
        self.norms = nn.ModuleList(nn.BatchNorm1d(topics, affine=False) for _ in range(2))
        self.beta = nn.Linear(topics, words, bias=False)
        self.norm = nn.BatchNorm1d(words, affine=False)

    def model(self, docs: Tensor) -> None:
        """Score the words of documents."""
        pyro.module("beta", self.beta)
        with pyro.plate("documents", docs.shape[0]):
            zeros = docs.new_zeros(docs.shape[0], self.topics)
            logtheta = pyro.sample("logtheta", dist.Normal(zeros, zeros + 1).to_event(1))
            theta = self.drop(F.softmax(logtheta, -1))
            words = F.softmax(self.norm(self.beta(theta)), dim=1)
            total = int(docs.sum(-1).max())
            pyro.sample("obs", dist.Multinomial(total, words), obs=docs)

    def guide(self, docs: Tensor) -> None:
        """Encode."""
        for name in ("encoder", "loc", "log_variance"):
            pyro.module(name, getattr(self, name))
        with pyro.plate("documents", docs.shape[0]):
            h = self.drop(F.softplus(self.encoder(docs)))
            loc, log_variance = self.norms[0](self.loc(h)), self.norms[1](self.log_variance(h))
            pyro.sample("logtheta", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))


@example("tutorial/prodlda")
def prodlda(SVI: Any) -> Step:
    """Topics by a product of experts; the total count of the words is read from the batch."""
    program, docs = ProdLDA(), torch.poisson(torch.full((200, 200), 0.3))
    batches = itertools.cycle(docs.split(50))
    svi = SVI(program.model, program.guide, Adam({"lr": 1e-3}), loss=TraceMeanField_ELBO())
    return lambda: svi.step(next(batches))


class DMM(nn.Module):
    """The deep Markov model of `examples/dmm.py`."""

    def __init__(self, notes: int = 20, latents: int = 8, rnn: int = 16, flows: int = 0) -> None:
        super().__init__()
        self.emitter = mlp(latents, 16, notes, activation=nn.ReLU)
        self.gate, self.proposal = mlp(latents, 16, latents), mlp(latents, 16, latents)
        self.scale, self.loc = nn.Linear(latents, latents), nn.Linear(latents, latents)
        self.loc.weight.data, self.loc.bias.data = torch.eye(latents), torch.zeros(latents)
        self.combine, self.q = nn.Linear(latents, rnn), nn.Linear(rnn, 2 * latents)
        self.rnn = nn.RNN(notes, rnn, nonlinearity="relu", batch_first=True)
        self.iafs = [affine_autoregressive(latents, hidden_dims=[16]) for _ in range(flows)]
        self.iafs_modules = nn.ModuleList(self.iafs)
        self.z_0, self.z_q_0 = (nn.Parameter(torch.zeros(latents)) for _ in range(2))
        self.h_0 = nn.Parameter(torch.zeros(1, 1, rnn))

    def model(self, x: Tensor, mask: Tensor, annealing_factor: float = 1.0) -> None:
        """Score sequences of different lengths."""
        pyro.module("dmm", self)
        z = self.z_0.expand(len(x), -1)
        with pyro.plate("z_minibatch", len(x)):
            for t in pyro.markov(range(x.size(1))):
                gate, proposal = torch.sigmoid(self.gate(z)), self.proposal(z)
                loc = (1 - gate) * self.loc(z) + gate * proposal
                prior = dist.Normal(loc, F.softplus(self.scale(proposal.relu())))
                with poutine.scale(scale=annealing_factor):
                    z = pyro.sample(f"z_{t}", prior.mask(mask[:, t : t + 1]).to_event(1))
                emission = dist.Bernoulli(torch.sigmoid(self.emitter(z)))
                observed = emission.mask(mask[:, t : t + 1]).to_event(1)
                pyro.sample(f"obs_x_{t}", observed, obs=x[:, t, :])

    def guide(self, x: Tensor, mask: Tensor, annealing_factor: float = 1.0) -> None:
        """Sample latents from the last to the first observation."""
        pyro.module("dmm", self)
        h_0 = self.h_0.expand(1, len(x), self.rnn.hidden_size).contiguous()
        states = self.rnn(x.flip(1), h_0)[0].flip(1)
        z = self.z_q_0.expand(len(x), -1)
        with pyro.plate("z_minibatch", len(x)):
            for t in pyro.markov(range(x.size(1))):
                hidden = 0.5 * (torch.tanh(self.combine(z)) + states[:, t])
                loc, scale = self.q(hidden).chunk(2, -1)
                q = dist.Normal(loc, F.softplus(scale))
                if self.iafs:
                    q = dist.TransformedDistribution(q, self.iafs).mask(mask[:, t])
                else:
                    q = q.mask(mask[:, t : t + 1]).to_event(1)
                with poutine.scale(scale=annealing_factor):
                    z = pyro.sample(f"z_{t}", q)


def markov(SVI: Any, flows: int) -> Step:
    """Train a deep Markov model with an annealed KL divergence and a decaying learning rate."""
    lengths, longest = torch.randint(4, 9, (60,)), 8
    x = (torch.rand(60, longest, 20) < 0.2).float()
    mask = (torch.arange(longest) < lengths[:, None]).float()
    program, count = DMM(flows=flows), itertools.count(1)
    settings = {"lr": 3e-4, "betas": (0.96, 0.999), "clip_norm": 10.0, "lrd": 0.99996}
    optimizer = ClippedAdam(settings | {"weight_decay": 2.0})
    svi = SVI(program.model, program.guide, optimizer, loss=Trace_ELBO())

    def step() -> float:
        rows = torch.randperm(60)[:20]
        longest = int(lengths[rows].max())
        factor = min(1.0, 0.2 + 0.8 * next(count) / 200)
        loss: float = svi.step(x[rows, :longest], mask[rows, :longest], factor)
        return loss

    return step


example("examples/dmm.py")(functools.partial(markov, flows=0))
example("examples/dmm.py --num-iafs 1")(functools.partial(markov, flows=1))


def place(where: Tensor, windows: Tensor, size: int) -> Tensor:
    """Draw windows at their places, or cut them out."""
    padded = torch.cat((where.new_zeros(len(where), 1), where), 1)
    theta = padded.index_select(1, torch.tensor([1, 0, 2, 0, 1, 3])).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(where), 1, size, size], align_corners=False)
    return F.grid_sample(windows[:, None], grid, align_corners=False).flatten(1)


class AIR(nn.Module):
    """Attend, infer, repeat: the model of `examples/air`."""

    def __init__(self, steps: int = 2, size: int = 16, window: int = 8, hidden: int = 32) -> None:
        super().__init__()
        self.steps, self.size, self.window, self.what = steps, size, window, 6
        inputs = size**2 + 3 + self.what + 1
        self.rnn, self.bl_rnn = nn.LSTMCell(inputs, hidden), nn.LSTMCell(inputs, hidden)
        self.predict, self.bl_predict = mlp(hidden, 7), mlp(hidden, 1)
        self.encode, self.decode = mlp(window**2, 2 * self.what), mlp(self.what, window**2)
        self.register_buffer("where_loc", torch.tensor([3.0, 0.0, 0.0]))
        self.register_buffer("where_scale", torch.tensor([0.1, 1.0, 1.0]))

    def model(self, data: Tensor, batch_size: int, prior: Any) -> None:
        """Draw up to two objects."""
        pyro.module("decode", self.decode)
        with pyro.plate("data", data.size(0), device=data.device) as ix:
            batch = data[ix]
            n = len(batch)
            image, present = torch.zeros(n, self.size**2), torch.ones(n, 1)
            for t in range(self.steps):
                probs = prior(t) * present
                present = pyro.sample(f"present_{t}", dist.Bernoulli(probs).to_event(1))
                where = dist.Normal(self.where_loc.expand(n, 3), self.where_scale.expand(n, 3))
                where = pyro.sample(f"where_{t}", where.mask(present).to_event(1))
                what = dist.Normal(torch.zeros(n, self.what), torch.ones(n, self.what))
                what = pyro.sample(f"what_{t}", what.mask(present).to_event(1))
                window = self.decode(what).view(n, self.window, self.window)
                image = image + place(where, window, self.size) * present
            likelihood = dist.Normal(image, 0.3 * torch.ones(n, self.size**2)).to_event(1)
            pyro.sample("obs", likelihood, obs=batch.view(n, -1))

    def guide(self, data: Tensor, batch_size: int, prior: Any) -> None:
        """Sample objects one after another, with a learned baseline."""
        for name in ("rnn", "predict", "encode", "bl_rnn", "bl_predict"):
            pyro.module(name, getattr(self, name))
        with pyro.plate("data", data.size(0), batch_size, device=data.device) as ix:
            batch = data[ix]
            n = len(batch)
            h = c = bl_h = bl_c = torch.zeros(n, self.rnn.hidden_size)
            present, where, what = torch.ones(n, 1), torch.zeros(n, 3), torch.zeros(n, self.what)
            for t in range(self.steps):
                found = torch.cat([batch.flatten(1), where, what, present], 1)
                h, c = self.rnn(found, (h, c))
                bl_h, bl_c = self.bl_rnn(found.detach(), (bl_h, bl_c))
                value = (self.bl_predict(bl_h) * present).squeeze(-1)
                logit, loc, scale = self.predict(h).split([1, 3, 3], 1)
                q = dist.Bernoulli(torch.sigmoid(logit) * present).to_event(1)
                infer = {"baseline": {"baseline_value": value}}
                present = pyro.sample(f"present_{t}", q, infer=infer)
                q = dist.Normal(loc + self.where_loc, F.softplus(scale) * self.where_scale)
                where = pyro.sample(f"where_{t}", q.mask(present).to_event(1))
                inverse = torch.cat((torch.ones(n, 1), -where[:, 1:]), 1) / where[:, :1]
                what_loc, what_scale = self.encode(place(inverse, batch, self.window)).chunk(2, 1)
                q = dist.Normal(what_loc, F.softplus(what_scale))
                what = pyro.sample(f"what_{t}", q.mask(present).to_event(1))


@example("examples/air")
def attend_infer_repeat(SVI: Any) -> Step:
    """Discrete and continuous latents, learned baselines, a function among the arguments."""
    program, data, count = AIR(), torch.rand(100, 16, 16), itertools.count()

    def prior(opt_step: int, t: int) -> float:
        return max(0.5 * 0.999**opt_step, 1e-2) / (t + 1)

    def rate(name: str) -> dict[str, float]:
        return {"lr": 1e-3 if "bl_" in name else 1e-4}

    svi = SVI(program.model, program.guide, Adam(rate), loss=TraceGraph_ELBO())
    return lambda: svi.step(data, batch_size=32, prior=functools.partial(prior, next(count)))


@example("examples/scanvi, its scheduler")
def scheduled(SVI: Any) -> Step:
    """A VAE with a schedule of Pyro: `MultiStepLR`, which the user steps."""
    program, batches = VAE(latents=5, hidden=20), images(50)
    settings = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-3}, "gamma": 0.5}
    schedule = MultiStepLR(settings | {"milestones": [5, 10]})
    svi, count = SVI(program.model, program.guide, schedule, loss=Trace_ELBO()), itertools.count(1)

    def step() -> float:
        loss: float = svi.step(next(batches))
        if next(count) % 100 == 0:
            schedule.step()
        return loss

    return step
