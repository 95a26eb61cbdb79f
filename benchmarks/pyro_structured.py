"""Programs after examples of Pyro's repository: enumeration, subsampling and many latents.

See `pyro_programs`: data are synthetic, and each function returns a step.
"""

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.distributions import constraints
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO, autoguide
from pyro.optim import AdagradRMSProp, Adam, ClippedAdam
from pyro_programs import Step, example
from torch import Tensor, nn
from torch.nn.functional import softplus


def chorales(num_sequences: int = 40, longest: int = 12, notes: int = 20) -> tuple[Tensor, Tensor]:
    """Return sequences of notes, and their lengths."""
    lengths = torch.randint(longest // 3, longest + 1, (num_sequences,))
    sequences = (torch.rand(num_sequences, longest, notes) < 0.2).float()
    return sequences * (torch.arange(longest) < lengths[:, None])[..., None], lengths


def markov_chain(sequences: Tensor, lengths: Tensor, args: Any, batch_size: int) -> None:
    """A hidden Markov model of a minibatch of sequences of different lengths (`model_1`)."""
    num_sequences, _, notes = map(int, sequences.shape)
    transitions = dist.Dirichlet(0.9 * torch.eye(args.hidden_dim) + 0.1).to_event(1)
    probs_x = pyro.sample("probs_x", transitions)
    emissions = dist.Beta(0.1, 0.9).expand([args.hidden_dim, notes]).to_event(2)
    probs_y = pyro.sample("probs_y", emissions)
    tones = pyro.plate("tones", notes, dim=-1)
    with pyro.plate("sequences", num_sequences, batch_size, dim=-2) as batch:
        lengths, x = lengths[batch], 0
        for t in pyro.markov(range(lengths.max())):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                transition = dist.Categorical(probs_x[x])
                x = pyro.sample(f"x_{t}", transition, infer={"enumerate": "parallel"})
                with tones:
                    emission = dist.Bernoulli(probs_y[x.squeeze(-1)])
                    pyro.sample(f"y_{t}", emission, obs=sequences[batch, t])


def hmm(SVI: Any, model: Any, elbo: Any) -> Step:
    """Train the parameters of a hidden Markov model with `AutoDelta`.

    The learning rate is 0.001 instead of 0.05: the example takes 50 steps, and with random data its
    probabilities later underflow.
    """
    sequences, lengths = chorales()
    args = SimpleNamespace(hidden_dim=8)
    guide = autoguide.AutoDelta(
        poutine.block(model, expose_fn=lambda site: site["name"].startswith("probs_"))
    )
    svi = SVI(model, guide, Adam({"lr": 0.001}), elbo)
    return lambda: svi.step(sequences, lengths, args=args, batch_size=8)


@example("examples/hmm.py --model 1")
def hidden_markov(SVI: Any) -> Step:
    """Hidden states summed out; the number of sites depends on the minibatch."""
    return hmm(SVI, markov_chain, TraceEnum_ELBO(max_plate_nesting=2))


@example("examples/hmm.py --model 1 --tmc")
def tensor_monte_carlo(SVI: Any) -> Step:
    """Hidden states sampled."""

    def settings(site: dict[str, Any]) -> dict[str, Any]:
        enumerated = site["infer"].get("enumerate") == "parallel"
        return {"num_samples": 5, "expand": False} if enumerated else {}

    return hmm(
        SVI, poutine.infer_config(markov_chain, settings), TraceTMC_ELBO(max_plate_nesting=2)
    )


@example("examples/capture_recapture/cjs.py")
def capture_recapture(SVI: Any) -> Step:
    """Survival of animals: enumerated states under a mask that depends on the data."""
    num_animals, years = 100, 6
    history = (torch.rand(num_animals, years) < 0.4).float()

    def model(history: Tensor) -> None:
        phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
        rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
        with pyro.plate("animals", num_animals, dim=-1):
            z, captured = torch.ones(num_animals), torch.zeros(num_animals).bool()
            for t in pyro.markov(range(years)):
                with poutine.mask(mask=captured):
                    alive = captured.float() * phi * z + (1 - captured.float())
                    infer = {"enumerate": "parallel"}
                    z = pyro.sample(f"z_{t}", dist.Bernoulli(alive), infer=infer)
                    pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=history[:, t])
                captured |= history[:, t].bool()

    def expose(site: dict[str, Any]) -> bool:
        return site["name"][0:3] in ("phi", "rho")

    guide = autoguide.AutoDiagonalNormal(poutine.block(model, expose_fn=expose))
    elbo = TraceEnum_ELBO(max_plate_nesting=1, num_particles=4, vectorize_particles=True)
    svi = SVI(model, guide, Adam({"lr": 0.01}), elbo)
    return lambda: svi.step(history)


@example("examples/lda.py")
def topics(SVI: Any) -> Step:
    """Topics of documents, word assignments summed out, documents subsampled by the guide."""
    sizes = {"num_topics": 4, "num_words": 100, "num_docs": 200, "num_words_per_doc": 32}
    args = SimpleNamespace(**sizes)

    def model(data: Tensor, args: Any, batch_size: int) -> None:
        with pyro.plate("topics", args.num_topics):
            weights = pyro.sample("topic_weights", dist.Gamma(1.0 / args.num_topics, 1.0))
            flat = torch.ones(args.num_words) / args.num_words
            words = pyro.sample("topic_words", dist.Dirichlet(flat))
        with pyro.plate("documents", args.num_docs) as ind:
            data = data[:, ind]
            doc_topics = pyro.sample("doc_topics", dist.Dirichlet(weights))
            with pyro.plate("words", args.num_words_per_doc):
                infer = {"enumerate": "parallel"}
                topic = pyro.sample("word_topics", dist.Categorical(doc_topics), infer=infer)
                pyro.sample("doc_words", dist.Categorical(words[topic]), obs=data)

    def guide(predictor: nn.Module, data: Tensor, args: Any, batch_size: int) -> None:
        flat, above = torch.ones(args.num_topics), constraints.greater_than(0.5)
        weights = pyro.param("weights_q", lambda: flat, constraint=constraints.positive)
        shape = args.num_topics, args.num_words
        words = pyro.param("words_q", lambda: torch.ones(*shape), constraint=above)
        with pyro.plate("topics", args.num_topics):
            pyro.sample("topic_weights", dist.Gamma(weights, 1.0))
            pyro.sample("topic_words", dist.Dirichlet(words))
        pyro.module("predictor", predictor)
        with pyro.plate("documents", args.num_docs, batch_size) as ind:
            data = data[:, ind]
            counts = torch.zeros(args.num_words, ind.size(0))
            counts = counts.scatter_add(0, data, torch.ones(data.shape))
            pyro.sample("doc_topics", dist.Delta(predictor(counts.T), event_dim=1))

    layers = [nn.Linear(100, 50), nn.Sigmoid(), nn.Linear(50, 4), nn.Softmax(dim=-1)]
    predictor = nn.Sequential(*layers)
    data = torch.randint(args.num_words, (args.num_words_per_doc, args.num_docs))
    elbo = TraceEnum_ELBO(max_plate_nesting=2)
    svi = SVI(model, functools.partial(guide, predictor), ClippedAdam({"lr": 0.01}), elbo)
    return lambda: svi.step(data, args=args, batch_size=32)


WIDTHS = {"top": 20, "mid": 10, "bottom": 5}
NUM_IMAGES, NUM_PIXELS = 40, 64


def deep_exponential_family(x: Tensor) -> None:
    """A sparse gamma deep exponential family of three layers."""
    sizes = [*WIDTHS.values(), NUM_PIXELS]
    weights = {}
    for name, m, n in zip(WIDTHS, sizes, sizes[1:], strict=False):
        with pyro.plate(f"w_{name}_plate", m * n):
            w = pyro.sample(f"w_{name}", dist.Gamma(torch.tensor(0.1), torch.tensor(0.3)))
            weights[name] = w.reshape(m, n)
    with pyro.plate("data", len(x)):
        mean = torch.ones(())
        for name, width in WIDTHS.items():
            rate = torch.tensor(0.1) / mean
            prior = dist.Gamma(torch.tensor(0.1), rate.expand([width]) if name == "top" else rate)
            mean = torch.matmul(pyro.sample(f"z_{name}", prior.to_event(1)), weights[name])
        pyro.sample("obs", dist.Poisson(mean).to_event(1), obs=x)


def random(shape: Any, mean: float, sigma: float) -> Tensor:
    """Return random initial values."""
    return mean * torch.ones(shape) + sigma * torch.randn(shape)


@example("examples/sparse_gamma_def.py")
def gamma_guide(SVI: Any) -> Step:
    """A guide of gammas; the user clips the parameters in place after each step."""

    def gamma(name: str, shape: tuple[int, ...]) -> dist.Gamma:
        alpha = softplus(pyro.param(f"alpha_{name}", lambda: random(shape, 0.5, 0.1)))
        mean = softplus(pyro.param(f"mean_{name}", lambda: random(shape, 0.0, 0.1)))
        return dist.Gamma(alpha, alpha / mean)

    def guide(x: Tensor) -> None:
        sizes = [*WIDTHS.values(), NUM_PIXELS]
        for name, m, n in zip(WIDTHS, sizes, sizes[1:], strict=False):
            with pyro.plate(f"w_{name}_plate", m * n):
                pyro.sample(f"w_{name}", gamma(f"w_{name}", (m * n,)))
        with pyro.plate("data", len(x)):
            for name, width in WIDTHS.items():
                q = gamma(f"z_{name}", (len(x), width)).to_event(1)
                pyro.sample(f"z_{name}", q)

    x = torch.poisson(torch.full((NUM_IMAGES, NUM_PIXELS), 3.0))
    optimizer = AdagradRMSProp({"eta": 4.5, "t": 0.1})
    svi = SVI(deep_exponential_family, guide, optimizer, loss=TraceMeanField_ELBO())

    def step() -> float:
        loss: float = svi.step(x)
        for name in ("w", "z"):
            for layer in WIDTHS:
                pyro.param(f"alpha_{name}_{layer}").data.clamp_(min=-2.5)
                pyro.param(f"mean_{name}_{layer}").data.clamp_(min=-4.5)
        return loss

    return step


class Groups(EasyGuide):
    """All weights in one group, all latents of the images in another."""

    def guide(self, x: Tensor) -> None:
        """Sample two groups from normals."""
        weights, latents = self.group(match="w_.*"), self.group(match="z_.*")
        loc = pyro.param("w_mean", lambda: random(weights.event_shape, 0.5, 0.1))
        scale = softplus(pyro.param("w_scale", lambda: random(weights.event_shape, 0.0, 0.1)))
        weights.sample("ws", dist.Normal(loc, scale).to_event(1))
        shape = x.shape[:1] + latents.event_shape
        with self.plate("data", x.size(0)):
            loc = pyro.param("z_mean", lambda: random(shape, 0.5, 0.1))
            scale = softplus(pyro.param("z_scale", lambda: random(shape, 0.0, 0.1)))
            latents.sample("zs", dist.Normal(loc, scale).to_event(1))


@example("examples/sparse_gamma_def.py --guide easy")
def easy_guide(SVI: Any) -> Step:
    """The same family with an `EasyGuide`."""
    x = torch.poisson(torch.full((NUM_IMAGES, NUM_PIXELS), 3.0))
    guide, optimizer = Groups(deep_exponential_family), AdagradRMSProp({"eta": 0.2, "t": 0.05})
    svi = SVI(deep_exponential_family, guide, optimizer, loss=TraceMeanField_ELBO())
    return lambda: svi.step(x)


def slide(mu: Tensor, length: float = 2.0, phi: float = np.pi / 6, dt: float = 0.02) -> Tensor:
    """Simulate the time to slide down an inclined plane; the loop ends by a tensor's value."""
    time, velocity, displacement = torch.zeros(()), torch.zeros(()), torch.zeros(())
    acceleration = torch.tensor(9.8 * np.sin(phi)) - torch.tensor(9.8 * np.cos(phi)) * mu
    if acceleration.numpy() <= 0.05:
        return torch.tensor(1.0e1)
    while displacement.numpy() < length:
        displacement += velocity * dt
        velocity += acceleration * dt
        time += dt
    return time


@example("examples/inclined_plane.py")
def inclined_plane(SVI: Any) -> Step:
    """The simulator of the example (importance sampling there), with the score function."""
    data = slide(torch.tensor(0.12)) + 0.1 * torch.randn(20)

    def model(data: Tensor) -> None:
        time = slide(pyro.sample("mu", dist.Normal(0.2, 0.1)))
        for i, observed in enumerate(data):
            pyro.sample(f"obs_{i}", dist.Normal(time, torch.tensor(0.1)), obs=observed)

    def guide(data: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.2))
        scale = pyro.param("scale", torch.tensor(0.05), constraint=constraints.positive)
        pyro.sample("mu", NonreparameterizedNormal(loc, scale))

    svi = SVI(model, guide, Adam({"lr": 0.001}), loss=Trace_ELBO())
    return lambda: svi.step(data)
