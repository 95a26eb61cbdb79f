"""Checks of the package on a device, for gpu.py: each compares it with the CPU or a closed form."""

import copy
import functools
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from gpu_training import (
    Check,
    adam,
    annealed_as_eager,
    bf16,
    compiled_as_eager,
    convolutions_and_flows,
    default_adam,
    elsewhere,
    error,
    graph_launches,
    resume,
    stock_as_ours,
    synchronizations,
    vae_on,
)
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor

import pyro_vae as pv
from pyro_vae.objectives import Beta, Linear
from pyro_vae.pairs.sampler import Sampler

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.catalogue import EVENT_SHAPE, GUIDES, LIKELIHOODS, PRIORS, Line
from tests.support.linear_gaussian import linear_vae

# -- densities and log weights --------------------------------------------------------------------


def densities(device: str) -> Iterator[tuple[str, Check]]:
    """Compare the log densities of every part in float64 on the same values."""
    kinds = {"prior": PRIORS, "likelihood": LIKELIHOODS, "guide": GUIDES}
    for kind, lines in kinds.items():
        for name, line in lines.items():
            if line.saves:
                check = functools.partial(density, device, kind, line)
                yield f"density of the {kind} {name}, float64", check


def density(device: str, kind: str, line: Line) -> tuple[float, float]:
    """Compare the log densities of a part on the CPU and on the device."""
    torch.manual_seed(0)
    part = (line.build(2) if kind == "likelihood" else line.build()).double()
    shape = {"prior": None, "guide": EVENT_SHAPE, "likelihood": (2,)}[kind]
    inputs = () if shape is None else (torch.rand(50, *shape, dtype=torch.float64),)
    here = part(*inputs)
    there = copy.deepcopy(part).to(device)(*[x.to(device) for x in inputs])
    draws = here.sample((50,) if shape is None else ())
    assert there.sample().device.type == torch.device(device).type, "sampled on another device"
    return error(there.log_prob(draws.to(device)), here.log_prob(draws)), 1e-9


def log_weights(device: str) -> tuple[float, float]:
    """Compare the log weights of the same samples, in float64."""
    vae, x = vae_on("cpu", torch.float64)
    there = copy.deepcopy(vae).to(device)
    draws = Sampler(vae, x).draw(x, 20)
    latents = {name: z.to(device) for name, z in draws.latents.items()}
    prior, likelihood = Sampler(there, x.to(device)).model_at(x.to(device), latents)
    (z,) = latents.values()
    actual = prior + likelihood - there.encode(x.to(device)).log_prob(z)
    return error(actual, draws.log_weights), 1e-9


def evaluation(device: str) -> tuple[float, float]:
    """Compare the ELBO of `evaluate` by standard errors of its Monte Carlo estimate."""
    vae, x = vae_on("cpu", torch.float64)
    here = pv.evaluate(vae, x[:64], num_samples=1000, seed=1)
    there = pv.evaluate(vae.to(device), x[:64].to(device), num_samples=1000, seed=2)
    draws = Sampler(vae, x[:64].to(device)).draw(x[:64].to(device), 1000).log_weights
    se = (draws.var(0) / 1000 * 2).sqrt().cpu().numpy()
    return float(np.abs((here.elbo - there.elbo) / se).max()), 5.0


def closed_form(device: str) -> tuple[float, float]:
    """Compare log p(x) of a linear Gaussian VAE with its closed form."""
    torch.manual_seed(0)
    vae, x = linear_vae()
    expected = vae.model.likelihood.marginal().log_prob(x)
    scores = pv.evaluate(vae.to(device), x.to(device), num_samples=30)
    return error(torch.from_numpy(scores.log_likelihood), expected), 1e-9


# -- the methods of a VAE, diagnostics ------------------------------------------------------------


def methods(device: str) -> tuple[float, float]:
    """Call the methods of a VAE; return how many gave tensors of another device or shape."""
    vae, x = vae_on(device)
    where = x.device.type
    results = [vae.sample(8), vae.reconstruct(x[:8]), vae.encode(x[:8]).sample()]
    results.append(vae.decode(results[-1]).sample())
    missing = pv.VAE(
        vae.model.prior, pv.likelihoods.Missing(vae.model.likelihood),
        pv.guides.DiagonalNormal(pv.networks.WithMask(pv.networks.MLP((200,), [8], 40))),
    ).to(device)  # fmt: skip
    holes = torch.where(torch.rand_like(x[:8]) < 0.2, torch.nan, x[:8])
    imputed = missing.impute(holes, num_samples=50)
    kept = torch.where(holes.isnan(), imputed, holes)
    assert torch.equal(imputed, kept), "observed entries changed"
    wrong = [r for r in [*results, imputed[0]] if r.device.type != where or len(r) != 8]
    return float(len(wrong)), 0.0


def regression(device: str) -> tuple[float, float]:
    """Convert a fitted Pyro regression to a DataTree; compare its posterior mean with the fit."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    x = torch.randn(40, device=device)
    y = 2 * x + torch.randn_like(x)

    def model(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), 5.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    guide = pyro.infer.autoguide.AutoNormal(model)
    svi = pv.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), compile=False)
    for _ in range(300):
        svi.step(x, y)
    tree = pv.from_pyro_svi(model, guide, model_args=(x, y), num_samples=1000, seed=0)
    exact = float((x * y).sum() / (x.square().sum() + 1 / 25))
    return abs(float(tree["posterior"]["slope"].mean()) - exact), 0.1


def annealed(device: str) -> tuple[float, float]:
    """Compare the lower bound of annealed importance sampling with log p(x) in closed form."""
    torch.manual_seed(0)
    vae, x = linear_vae()
    exact = vae.model.likelihood.marginal().log_prob(x[:8])
    found = pv.ais(vae.to(device), x[:8].to(device), num_temperatures=200, progress=False)
    return error(torch.from_numpy(found.lower), exact), 0.5


def gap_terms(device: str) -> tuple[float, float]:
    """Compare log p(x) from the best q of the family with that of the CPU."""
    vae, x = vae_on("cpu", torch.float64, sizes=(16, 2))
    run = functools.partial(pv.gaps, num_steps=30, num_samples=500, progress=False)
    here = run(vae, x[:8])
    there = run(vae.to(device), x[:8].to(device))
    lost = float((there.elbo - there.best_elbo).max())  # the best q is no worse
    return max(lost, float(np.abs(there.log_likelihood - here.log_likelihood).max())), 0.3


def calibration(device: str) -> tuple[float, float]:
    """Return how many standard errors the mean rank of the exact posterior is from 1/2."""
    torch.manual_seed(0)
    vae, x = linear_vae()
    tree = pv.sbc(vae.to(device), x.to(device), num_simulations=300, progress=False)
    u = np.concatenate([np.ravel(v) for v in tree["prior_sbc"].data_vars.values()])
    return float(abs(u.mean() - 0.5) * np.sqrt(12 * u.size)), 5.0


def trust(device: str) -> tuple[float, float]:
    """Return how many findings of a small trust card are NaN."""
    vae, x = vae_on(device, sizes=(16, 2))
    pv.fit(vae, x, epochs=3, compile=False, progress=False)
    card = pv.diagnose(vae, x[:32], num_samples=100, num_gap_data=4, num_simulations=50,
                       progress=False)  # fmt: skip
    return float(sum(np.isnan(finding.value) for finding in card.findings)), 0.0


# -- the grid -------------------------------------------------------------------------------------


def support(described: Any) -> tuple[str, torch.Size]:
    """Return the support of a distribution over latents."""
    inner = described.support
    while hasattr(inner, "base_constraint"):
        inner = inner.base_constraint
    return str(inner), described.event_shape


def grid(device: str) -> Iterator[tuple[str, Check]]:
    """Train one step and score every prior with every guide that fits, and every likelihood."""
    x = torch.rand(1, *EVENT_SHAPE)
    priors = {name: support(line.build()()) for name, line in PRIORS.items() if line.saves}
    guides = {name: support(line.build()(x)) for name, line in GUIDES.items()}
    fitting = [(p, g) for p in priors for g in guides if priors[p] == guides[g]]
    chosen = [*itertools.product(fitting, ["Bernoulli", "Normal"])]
    chosen += [(("StandardNormal", "DiagonalNormal"), name) for name in LIKELIHOODS]
    for (prior, guide), likelihood in dict.fromkeys(chosen):
        check = functools.partial(combination, device, prior, guide, likelihood)
        yield f"one step and scores: {prior}; {guide}; {likelihood}", check


def combination(device: str, prior: str, guide: str, likelihood: str) -> tuple[float, float]:
    """Return how many of the loss and the scores are not finite."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    first = PRIORS[prior].build()
    latents = first().event_shape[0]
    make = LIKELIHOODS[likelihood].build
    x = make(latents)(torch.zeros(20, latents)).sample().to(device)
    vae = pv.VAE(first, make(latents), GUIDES[guide].build()).to(device)
    enumerable = vae.encode(x).has_enumerate_support
    objective = TraceEnum_ELBO(max_plate_nesting=1) if enumerable else Trace_ELBO()
    program = config_enumerate(vae.guide) if enumerable else vae.guide
    loss = pv.SVI(vae.model, program, adam, objective, compile=False).step(x)
    scores = pv.evaluate(vae, x[:5], num_samples=10)
    values = np.array([loss, *scores.elbo, *scores.log_likelihood])
    return float((~np.isfinite(values)).sum()), 0.0


def first_checks(device: str) -> Iterator[tuple[str, Check]]:
    """Return the checks that run before the timings."""
    named: dict[str, Check] = {
        "compiled step as the eager step, float64": functools.partial(
            compiled_as_eager, device, torch.float64, 1e-9),
        "compiled step as the eager step, float32": functools.partial(
            compiled_as_eager, device, torch.float32, 1e-3),
        "compiled step as the eager step, Adam's default": functools.partial(default_adam, device),
        "eager step as Pyro's SVI, float64": functools.partial(stock_as_ours, device),
        "compiled step as the eager step, a KL weight that grows": functools.partial(
            annealed_as_eager, device),
        "compiled step as the eager step, convolutions and flows": functools.partial(
            convolutions_and_flows, device),
        "losses in bfloat16": functools.partial(bf16, device),
        "log weights of the same samples, float64": functools.partial(log_weights, device),
        "log p(x) of a linear Gaussian VAE": functools.partial(closed_form, device),
        "evaluate, in standard errors": functools.partial(evaluation, device),
        "resumed run, eager": functools.partial(resume, device, False),
        "resumed run, compiled": functools.partial(resume, device, True),
        "model of the device on the CPU": functools.partial(elsewhere, device),
        "sample, encode, reconstruct, impute": functools.partial(methods, device),
    }  # fmt: skip
    if device != "cpu":
        named["synchronizations in 200 steps"] = functools.partial(synchronizations, device)
        named["launches a step outside of its CUDA graph"] = functools.partial(
            graph_launches, device, 10.0
        )
        named["the same, with a KL weight that grows"] = functools.partial(
            graph_launches, device, 11.0, functools.partial(Beta, Linear(1000))
        )
    yield from named.items()
    yield from densities(device)


def last_checks(device: str) -> Iterator[tuple[str, Check]]:
    """Return the checks that run after the timings."""
    yield "from_pyro_svi of a regression", functools.partial(regression, device)
    yield "gaps", functools.partial(gap_terms, device)
    yield "ais against the closed form", functools.partial(annealed, device)
    yield "sbc", functools.partial(calibration, device)
    yield "diagnose", functools.partial(trust, device)
    yield from grid(device)
