"""Random model/guide pairs in plain Pyro with an exact guide, and what each function makes of them.

The guide is the exact posterior. Every log weight then equals log p(x), for any number of samples.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from tests.support.conjugate import Conjugate, NormalNormal, random_conjugate

NAMES = (
    "z", "x", "w", "data", "obs", "plate", "features", "draw_", "log_weight", "log_q", "a.b",
    "größe", "site 1", "posterior", "sample", "_hidden", "value", "loc", "N", "lambda",
    "x-y", "theta/0",
)  # fmt: skip
OBSERVED = ("event", "sites", "plate", "sequential", "subsampled")
Program = Callable[[Tensor, Tensor], None]


@dataclass
class Adversary:
    """A pair with its data, the rows `(x, seen)`, and the exact answers."""

    description: str
    model: Program
    guide: Program
    x: Tensor
    seen: Tensor
    evidence: Tensor  # of each datum, or of all data if there are global latents
    latents: set[str]
    is_subsampled: bool = False  # steps see some of the columns: their bounds are random
    is_vectorizable: bool = True  # by Pyro's `vectorize_particles`

    @property
    def is_local(self) -> bool:
        """Whether each datum has an evidence."""
        return self.evidence.dim() == 1


@dataclass(frozen=True)
class Observe:
    """Observes the entries of x given one z per datum."""

    conjugate: Conjugate
    kind: str
    names: tuple[str, str, str]

    @property
    def data_dim(self) -> int:
        """Dimension of the plate over the data."""
        return -2 if self.kind in ("plate", "subsampled") else -1

    def __call__(self, z: Tensor, x: Tensor, seen: Tensor) -> None:
        if self.kind == "event":
            self.event(self.names[0], z, x, seen)
        elif self.kind == "sites":
            half = x.shape[1] // 2
            self.event(self.names[0], z, x[:, :half], seen[:, :half])
            self.event(self.names[1], z, x[:, half:], seen[:, half:])
        elif self.kind == "sequential":
            for d in pyro.plate(self.names[2], x.shape[1]):
                likelihood = self.conjugate.likelihood(z).mask(seen[:, d])
                pyro.sample(f"{self.names[0]}{d}", likelihood, obs=x[:, d])
        else:
            size = x.shape[1]
            part = max(1, size // 2) if self.kind == "subsampled" else None
            with (
                pyro.plate(self.names[2], size, subsample_size=part, dim=-1) as index,
                poutine.mask(mask=seen[:, index]),
            ):
                pyro.sample(self.names[0], self.conjugate.likelihood(z), obs=x[:, index])

    def event(self, name: str, z: Tensor, x: Tensor, seen: Tensor) -> None:
        """Observe entries as one event per datum."""
        entry = self.conjugate.entry(z)
        expanded = entry.expand((*entry.batch_shape[:-1], x.shape[1]))
        pyro.sample(name, expanded.mask(seen).to_event(1), obs=x)


@dataclass(frozen=True)
class Local:
    """One latent per datum."""

    conjugate: Conjugate
    observe: Observe
    plate: str
    latent: str
    size: int | None
    factor: float | None = None  # log of a constant factor of p(x_n, z_n)
    deterministic: str | None = None  # name of a function of z

    def over_data(self, x: Tensor) -> pyro.plate:
        size = self.size or len(x)
        return pyro.plate(self.plate, size, subsample_size=len(x), dim=self.observe.data_dim)

    def model(self, x: Tensor, seen: Tensor) -> None:
        with self.over_data(x):
            z = pyro.sample(self.latent, self.conjugate.prior())
            if self.deterministic:
                pyro.deterministic(self.deterministic, 2 * z, event_dim=self.conjugate.event_dim)
            if self.factor:
                shape = (len(x), 1) if self.observe.data_dim == -2 else (len(x),)
                pyro.factor("factor", torch.full(shape, self.factor, dtype=torch.float64))
            self.observe(z, x, seen)

    def guide(self, x: Tensor, seen: Tensor) -> None:
        if self.observe.data_dim == -2:
            posterior = self.conjugate.posterior(x.unsqueeze(1), seen.unsqueeze(1))
        else:
            posterior = self.conjugate.posterior(x, seen)
        with self.over_data(x):
            pyro.sample(self.latent, posterior)

    def decentered(self, x: Tensor, seen: Tensor) -> None:
        """Be the guide of the reparameterized model."""
        assert isinstance(self.conjugate, NormalNormal)
        q = self.conjugate.posterior(x, seen)
        loc = (q.loc - self.conjugate.loc) / self.conjugate.scale
        with self.over_data(x):
            name = f"{self.latent}_decentered"
            pyro.sample(name, dist.Normal(loc, q.scale / self.conjugate.scale))


@dataclass(frozen=True)
class Global:
    """One latent for each column of x, in a plate that has no relation to the data."""

    conjugate: Conjugate
    in_plates: bool
    names: tuple[str, str, str, str]  # plate, latent, plate over the columns, observed site
    data: tuple[Tensor, Tensor]

    def columns(self, x: Tensor, distribution: dist.TorchDistribution) -> tuple[Tensor, pyro.plate]:
        plate = pyro.plate(self.names[2], x.shape[1], dim=-1)
        with plate:
            return pyro.sample(self.names[1], distribution), plate

    def model(self, x: Tensor, seen: Tensor) -> None:
        w, columns = self.columns(x, self.conjugate.prior())
        likelihood = self.conjugate.likelihood(w)
        if self.in_plates:
            with pyro.plate(self.names[0], len(x), dim=-2), columns, poutine.mask(mask=seen):
                pyro.sample(self.names[3], likelihood, obs=x)
        else:
            with pyro.plate(self.names[0], len(x), dim=-1):
                shape = (len(x), x.shape[1])
                pyro.sample(self.names[3], likelihood.expand(shape).mask(seen).to_event(1), obs=x)

    def guide(self, x: Tensor, seen: Tensor) -> None:
        self.columns(x, self.conjugate.posterior(self.data[0].T, self.data[1].T))


@dataclass(frozen=True)
class Hierarchy:
    """mu ~ N(0, 1), z_n ~ N(mu, s^2), x_nd ~ N(z_n, r^2): global and local latents."""

    observe: Observe
    names: tuple[str, str, str]  # plate, global latent, local latent
    scale: Tensor
    data: tuple[Tensor, Tensor]

    def conjugate(self, mu: Tensor) -> NormalNormal:
        assert isinstance(self.observe.conjugate, NormalNormal)
        return NormalNormal(mu, self.scale, self.observe.conjugate.noise)

    def over_data(self, x: Tensor) -> pyro.plate:
        return pyro.plate(self.names[0], len(x), dim=self.observe.data_dim)

    def model(self, x: Tensor, seen: Tensor) -> None:
        mu = pyro.sample(self.names[1], dist.Normal(x.new_zeros(()), 1.0))
        with self.over_data(x):
            self.observe(pyro.sample(self.names[2], dist.Normal(mu, self.scale)), x, seen)

    def sufficient(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the posterior mean and variance of mu, and log p(x) of all data."""
        x, seen = self.data
        flat = self.conjugate(x.new_zeros(()))
        count = seen.sum(-1)
        variance = self.scale**2 + flat.noise**2 / count  # of the mean of a row, given mu
        mean = (x * seen).sum(-1) / count
        precision = 1 + (1 / variance)[count > 0].sum()
        loc = (mean / variance)[count > 0].sum() / precision
        zero = x.new_zeros(())
        rows = self.conjugate(loc).log_evidence(x, seen).sum()
        at_loc = dist.Normal(zero, 1.0).log_prob(loc) + rows
        return loc, 1 / precision, at_loc - dist.Normal(loc, precision**-0.5).log_prob(loc)

    def guide(self, x: Tensor, seen: Tensor) -> None:
        loc, variance, _ = self.sufficient()
        mu = pyro.sample(self.names[1], dist.Normal(loc, variance.sqrt()))
        if self.observe.data_dim == -2:
            x, seen = x.unsqueeze(1), seen.unsqueeze(1)
        with self.over_data(x):
            pyro.sample(self.names[2], self.conjugate(mu).posterior(x, seen))


def _auto_guide(kind: type, pair: Global, x: Tensor, seen: Tensor) -> Program:
    """Return an autoguide with the exact posterior of normal latents."""
    guide = kind(pair.model)
    with torch.random.fork_rng():
        guide(x, seen)
    posterior = pair.conjugate.posterior(x.T, seen.T)
    if kind is AutoNormal:
        setattr(guide.locs, pair.names[1], torch.nn.Parameter(posterior.loc))
        setattr(guide.scales, pair.names[1], posterior.scale)
    else:
        guide.loc = torch.nn.Parameter(posterior.loc)
        guide.scale = posterior.scale
    return guide


def adversary(seed: int) -> Adversary:
    """Return the pair of this seed. Pyro's parameter store is cleared: autoguides write into it."""
    pyro.clear_param_store()
    choose = random.Random(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        structure = choose.choice(["local", "local", "global", "hierarchy", "reparam", "auto"])
        if structure in ("local", "global"):
            conjugate = random_conjugate(generator)
        else:
            one, two, three = torch.rand(3, generator=generator, dtype=torch.float64)
            conjugate = NormalNormal(one - 0.5, two + 0.5, three + 0.5)
        num_data = choose.choice([1, 2, 3, 5, 8, 13, 40])
        num_entries = choose.choice([2, 3, 4, num_data, num_data + 1])
        x = conjugate.data((num_data,), max(2, num_entries))
        missing = choose.choice([0.0, 0.0, 0.3])
        seen = torch.rand(x.shape, generator=generator) >= missing
        if structure == "hierarchy" or choose.random() < 0.7:
            seen[:, 0] = True  # otherwise some rows have no observation
        if structure in ("local", "reparam"):
            return _local(choose, structure, conjugate, x, seen)
        if structure == "hierarchy":
            return _hierarchy(choose, conjugate, x, seen)
        return _global(choose, structure, conjugate, x, seen)


def _rows(x: Tensor, seen: Tensor) -> str:
    return f"x {tuple(x.shape)} missing {int((~seen).sum())}"


def _local(
    choose: random.Random, structure: str, conjugate: Conjugate, x: Tensor, seen: Tensor
) -> Adversary:
    plate, latent, *rest = choose.sample(NAMES, 5)
    kinds = OBSERVED if structure == "local" else ("event", "sites", "sequential")
    observe = Observe(conjugate, choose.choice(kinds), (rest[0], rest[1], rest[2]))
    size = choose.choice([None, None, len(x)])
    factor = choose.choice([None, None, 0.25])
    deterministic = choose.choice([None, "twice"])
    pair = Local(conjugate, observe, plate, latent, size, factor, deterministic)
    model: Program = pair.model
    guide: Program = pair.guide
    latents = {latent}
    if structure == "reparam":
        model = poutine.reparam(pair.model, {latent: LocScaleReparam(0.0)})
        guide, latents = pair.decentered, {latent, f"{latent}_decentered"}
    latents |= {deterministic} if deterministic else set()
    kind = f"{structure} {type(conjugate).__name__} {observe.kind}"
    names = f"plate {plate!r} latent {latent!r} others {rest}"
    description = f"{kind} {names} size {size} factor {factor} {_rows(x, seen)}"
    evidence = conjugate.log_evidence(x, seen) + (factor or 0.0)
    random_steps = observe.kind == "subsampled"
    return Adversary(description, model, guide, x, seen, evidence, latents, random_steps)


def _global(
    choose: random.Random, structure: str, conjugate: Conjugate, x: Tensor, seen: Tensor
) -> Adversary:
    names = choose.sample(NAMES, 4) if structure == "global" else ["data", "w", "columns", "x"]
    pair = Global(conjugate, choose.random() < 0.5, tuple(names), (x, seen))
    guide: Program = pair.guide
    if structure == "auto":
        kind = choose.choice([AutoNormal, AutoDiagonalNormal])
        guide = _auto_guide(kind, pair, x, seen)
        structure = kind.__name__
    evidence = conjugate.log_evidence(x.T, seen.T).sum()
    kind = f"{structure} {type(conjugate).__name__} in_plates={pair.in_plates}"
    description = f"{kind} names {names} {_rows(x, seen)}"
    latents = {names[1]}
    return Adversary(
        description, pair.model, guide, x, seen, evidence, latents, is_vectorizable=pair.in_plates
    )


def _hierarchy(choose: random.Random, conjugate: Conjugate, x: Tensor, seen: Tensor) -> Adversary:
    plate, mu, z, *rest = choose.sample(NAMES, 6)
    observe = Observe(conjugate, choose.choice(OBSERVED[:4]), (rest[0], rest[1], rest[2]))
    pair = Hierarchy(observe, (plate, mu, z), torch.tensor(0.8).double(), (x, seen))
    description = f"hierarchy {observe.kind} names {[*pair.names, *rest]} {_rows(x, seen)}"
    return Adversary(description, pair.model, pair.guide, x, seen, pair.sufficient()[2], {mu, z})
