"""Every density in float32 against 60 digits, over a grid of its parameters and of x.

A log density is right within 1e-3 nats or 1e-6 of its absolute value. So is its derivative in each
parameter: in the parameter itself if it is a logit or a logarithm, in units of the scale if it is a
location, and else in the logarithm of the parameter.
"""

import itertools

import pytest
import torch
from torch import nn

from pyro_vae import distributions, guides, likelihoods, priors
from pyro_vae.distributions.parameters import MIN_SCALE

mp = pytest.importorskip("mpmath")  # torch depends on sympy, which depends on mpmath
LARGEST = torch.finfo(torch.float32).max
BELOW_ONE = 1 - 2.0**-24


def float32(value) -> float:
    return torch.tensor(float(value), dtype=torch.float32).item()


def log_sigmoid(logit):
    return -mp.log1p(mp.exp(-logit))


def poisson(x, log_mean):
    return x * log_mean - mp.exp(log_mean) - mp.loggamma(x + 1)


def negative_binomial(x, r, log_mean):
    logit = log_mean - mp.log(r)
    binomial = mp.loggamma(x + r) - mp.loggamma(r) - mp.loggamma(x + 1)
    return binomial + r * log_sigmoid(-logit) + x * log_sigmoid(logit)


def zero_inflated(x, r, log_mean, gate):
    counted = log_sigmoid(-gate) + negative_binomial(x, r, log_mean)
    return mp.log(mp.exp(log_sigmoid(gate)) + mp.exp(counted)) if x == 0 else counted


def student_t(x, df, loc, scale):
    normalizer = mp.loggamma((df + 1) / 2) - mp.loggamma(df / 2) - mp.log(df * mp.pi) / 2
    return normalizer - mp.log(scale) - (df + 1) / 2 * mp.log1p(((x - loc) / scale) ** 2 / df)


def beta(x, logits, total):
    a, b = total * mp.exp(log_sigmoid(logits)), total * mp.exp(log_sigmoid(-logits))
    normalizer = mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)
    return (a - 1) * mp.log(x) + (b - 1) * mp.log1p(-x) - normalizer


def normal(x, loc, scale):
    return -(((x - loc) / scale) ** 2) / 2 - mp.log(scale) - mp.log(2 * mp.pi) / 2


def log_normal(x, loc, scale):
    return normal(mp.log(x), loc, scale) - mp.log(x)


def laplace(x, loc, scale):
    return -abs(x - loc) / scale - mp.log(2 * scale)


def bernoulli(x, logits):
    return log_sigmoid(logits if x else -logits)


def continuous_bernoulli(x, logits):
    if abs(logits) < 1e-20:
        return (x - mp.mpf(1) / 2) * logits
    return logits * x - mp.log(mp.expm1(logits) / logits)


def discretized_logistic(x, loc, scale):
    level, half = mp.nint(255 * x), mp.mpf(1) / 2
    above = log_sigmoid((loc - (level - half) / 255) / scale)
    below = log_sigmoid(((level + half) / 255 - loc) / scale)
    if level in (0, 255):
        return above if level else below
    return above + below + mp.log(-mp.expm1(-1 / (255 * scale)))


def power_spherical(x, total):
    """The density of d = 3 at the angle whose tangent is x."""
    half = (1 + 1 / mp.sqrt(1 + x**2)) / 2
    return total * mp.log(half) + mp.log((1 + total) / (4 * mp.pi))


def dirichlet(x, total):
    shares = (x, mp.mpf(1) / 4, mp.mpf(3) / 4 - x)
    normalizer = mp.loggamma(3 * total) - 3 * mp.loggamma(total)
    return normalizer + (total - 1) * sum(mp.log(share) for share in shares)


def low_rank_normal(x, factor, scale):
    """The density of (x, x), with the factor in both rows."""
    along = 2 * factor**2 + scale**2
    return -(x**2) / along - mp.log(along) / 2 - mp.log(scale) - mp.log(2 * mp.pi)


def logistic_normal(x, loc, scale):
    """The density of the shares (x, 1/4, 3/4 - x)."""
    last = mp.mpf(3) / 4 - x
    free = mp.log(2 * x / (1 - x)), mp.log(1 / (4 * last))
    log_jacobian = mp.log(x) + mp.log(last / 4)
    return sum(normal(y, loc, scale) for y in free) - log_jacobian


def around(mean, sd, *others):
    return [mean + k * sd for k in (0, 1e-3, -1, 1, 5, -20)] + list(others)


def counts_near(mean):
    largest = 1e30  # a sum of counts and dispersions must fit float32
    points = [*around(mean, mean**0.5, 0, 1, 2, 1e6, 1e12, 1.1 * mean, 30 * mean)]
    return {float32(round(x)) for x in points if 0 <= x <= largest}


LOG_MEANS = [-60.0, -3.0, 0.0, 1.5, 6.0, 13.8, 20.0, 40.0]
DISPERSIONS = [1e-20, 1e-3, 0.7, 20.0, 1e4, 1e6, 1e10, 1e20, 1e30]
SCALES = [1e-30, 1e-10, 1e-3, 1.0, 1e10, 1e30]
CONCENTRATIONS = [1e-3, 0.1, 1.0, 3.0, 100.0, 1e5, 1e8, 1e12, 1e20]
LOGITS = [0.0, 1e-30, 1e-6, 1e-3, 0.0999, 0.1001, 0.5, 3.0, 17.0, 100.0, 1e4, 1e7, 1e20, 1e37]
SIGNED = LOGITS + [-logit for logit in LOGITS[1:]]


def count_cells(*grids):
    for parameters in itertools.product(*grids, LOG_MEANS):
        for x in counts_near(float(mp.exp(parameters[-1]))):
            yield x, *parameters


def scale_cells(relative=(0.0, 1e-3, 1.0, 7.0, 100.0), first=()):
    for *others, scale, y in itertools.product(*first, SCALES, relative):
        for loc in (0.0, 3 * scale):
            yield loc + y * scale, *others, loc, scale


def beta_cells():
    for logits, total in itertools.product((-80.0, -20.0, -2.0, 0.0, 1.0, 9.0), CONCENTRATIONS):
        mean = 1 / (1 + float(mp.exp(-logits)))
        sd = float((mean * (1 - mean) / (1 + total)) ** 0.5)
        for x in around(mean, sd, 1e-35, 0.3, BELOW_ONE):
            if 1e-37 < x <= BELOW_ONE:
                yield x, logits, total


def log_normal_cells():
    for loc, scale in itertools.product((-20.0, 0.0, 5.0), (1e-6, 1e-3, 0.5, 10.0)):
        for y in (0.0, 1.0, -8.0):
            yield float(mp.exp(loc + scale * y)), loc, scale


def spherical_cells():
    for total in [0.0, *CONCENTRATIONS]:
        for x in (0.0, 0.1, 3.0, *(k / (1 + total) ** 0.5 for k in (0.1, 1, 5))):
            yield x, total


class Given(nn.Module):
    """A positive parameter with given values."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, outputs):
        return self.values


def entries(kind, *outputs, **positive):
    """Return the entries of a likelihood for decoder outputs and positive parameters."""
    likelihood = kind(lambda z: z)
    for name, values in positive.items():
        setattr(likelihood, name, Given(values))
    return likelihood.entries(torch.stack(outputs, -1))


class Spherical:
    """The power spherical density as a function of the tangent of the angle."""

    def __init__(self, total):
        self.total = total

    def log_prob(self, x):
        # The direction of (1, x, 0) is exact. A unit vector would be rounded.
        direction = torch.stack([torch.ones_like(x), x, torch.zeros_like(x)], -1)
        loc = torch.tensor([1.0, 0, 0])
        described = distributions.PowerSpherical(loc, self.total, validate_args=False)
        return described.log_prob(direction)


class Shares:
    """A density on the simplex of the shares (x, 1/4, 3/4 - x)."""

    def __init__(self, density):
        self.density = density

    def log_prob(self, x):
        return self.density.log_prob(torch.stack([x, torch.full_like(x, 0.25), 0.75 - x], -1))


def dirichlet_prior(concentration):
    prior = priors.Dirichlet(3)
    prior.concentration = concentration.unsqueeze(-1)
    return Shares(prior())


def logistic_normal_guide(loc, scale):
    # softplus^-1(scale - minimum), for scales that are much larger than the minimum
    raw = (scale - MIN_SCALE).expm1().log()
    return Shares(guides.LogisticNormal(lambda x: x)(torch.stack([loc, loc, raw, raw], -1)))


class OnDiagonal:
    """The density of (x, x) under a normal distribution of rank one and independent noise."""

    def __init__(self, factor, scale):
        both = torch.stack([factor, factor], -1).unsqueeze(-1)
        self.density = distributions.LowRankNormal(
            torch.zeros(len(factor), 2), both, torch.stack([scale, scale], -1).square()
        )

    def log_prob(self, x):
        return self.density.log_prob(torch.stack([x, x], -1))


def zero_inflated_cells():
    for x, r, log_mean in count_cells([0.7, 1e6, 1e20]):
        for gate in (-1e5, -100.0, 0.0, 30.0):
            if x < 3:
                yield x, r, log_mean, gate


# name: (distribution of parameters, exact log density of x and parameters, cells, units of the
# parameters: 1, s(cale), or + for the parameter itself)
DENSITIES = {
    "Poisson": (
        lambda log_mean: entries(likelihoods.Poisson, log_mean),
        poisson,
        count_cells(),
        "1",
    ),
    "NegativeBinomial": (
        lambda r, m: entries(likelihoods.NegativeBinomial, m, inverse_dispersion=r),
        negative_binomial,
        count_cells(DISPERSIONS),
        "+1",
    ),
    "ZeroInflatedNegativeBinomial": (
        lambda r, m, g: entries(
            likelihoods.ZeroInflatedNegativeBinomial, m, g, inverse_dispersion=r
        ),
        zero_inflated,
        zero_inflated_cells(),
        "+11",
    ),
    "StudentT": (
        lambda df, loc, scale: entries(likelihoods.StudentT, loc, df=df, scale=scale),
        student_t,
        scale_cells((0.0, 1e-3, 1.0, 1e4), ([1e-3, 1.0, 4.0, 1e3, 1e5, 1e8, 1e20],)),
        "+s+",
    ),
    "Beta": (
        lambda logits, total: entries(likelihoods.Beta, logits, concentration=total),
        beta,
        beta_cells(),
        "1+",
    ),
    "Normal": (
        lambda loc, scale: entries(likelihoods.Normal, loc, scale=scale),
        normal,
        scale_cells(),
        "s+",
    ),
    "LogNormal": (
        lambda loc, scale: entries(likelihoods.LogNormal, loc, scale=scale),
        log_normal,
        log_normal_cells(),
        "s+",
    ),
    "Laplace": (
        lambda loc, scale: entries(likelihoods.Laplace, loc, scale=scale),
        laplace,
        scale_cells(),
        "s+",
    ),
    "Bernoulli": (
        lambda logits: entries(likelihoods.Bernoulli, logits),
        bernoulli,
        itertools.product((0.0, 1.0), SIGNED),
        "1",
    ),
    "Bernoulli, an event": (
        lambda logits: entries(likelihoods.Bernoulli, logits.unsqueeze(-1)).to_event(1),
        bernoulli,
        itertools.product((0.0, 1.0), SIGNED),
        "1",
    ),
    "ContinuousBernoulli": (
        lambda logits: entries(likelihoods.ContinuousBernoulli, logits),
        continuous_bernoulli,
        itertools.product((0.0, 1e-30, 0.25, 0.5, BELOW_ONE, 1.0), SIGNED),
        "1",
    ),
    "DiscretizedLogistic": (
        lambda loc, scale: entries(likelihoods.DiscretizedLogistic, loc, scale=scale),
        discretized_logistic,
        itertools.product(
            (0.0, 1 / 255, 77 / 255, 254 / 255, 1.0),
            (-3.0, 0.0, 0.302, 1.0, 40.0),
            (1e-8, 1e-5, 1e-3, 0.1, 10.0, 1e8),
        ),
        "s+",
    ),
    "PowerSpherical": (Spherical, power_spherical, spherical_cells(), "+"),
    "LowRankNormal": (
        OnDiagonal,
        low_rank_normal,
        itertools.product((0.0, 1e-4, 1.0, 30.0), (1e-6, 1.0, 1e3), (1e-6, 1e-3, 1.0, 1e3)),
        "++",
    ),
    "LogisticNormal": (
        logistic_normal_guide,
        logistic_normal,
        itertools.product(
            (1e-30, 0.01, 0.25, 0.375, 0.75 - 2.0**-10, 0.75 - 2.0**-24),
            (-8.0, 0.0, 3.0),
            (0.25, 1.0, 8.0),
        ),
        "s+",
    ),
    "Dirichlet": (
        dirichlet_prior,
        dirichlet,
        itertools.product((1e-30, 0.01, 0.25, 0.375, 0.499), CONCENTRATIONS),
        "+",
    ),
}
DENSITIES = {name: (*line[:2], list(line[2]), line[3]) for name, line in DENSITIES.items()}


def check(name: str, cells: list[tuple[float, ...]]) -> list[str]:
    """Return the cells with a wrong log density or a wrong derivative."""
    build, exact, _, units = DENSITIES[name]
    x, *parameters = (torch.tensor(column) for column in zip(*cells, strict=True))
    parameters = [parameter.requires_grad_() for parameter in parameters]
    described = build(*parameters)
    log_probs = described.log_prob(x.unsqueeze(-1) if name.endswith("event") else x)
    assert log_probs.dtype == torch.float32
    gradients = torch.autograd.grad(log_probs.sum(), parameters)
    wrong = []
    for i, cell in enumerate(cells):
        numbers = [mp.mpf(number) for number in cell]
        unit = {"1": 1, "s": numbers[-1]}
        found = [(log_probs[i].item(), exact(*numbers), 1)]
        for j, letter in enumerate(units):
            slope = mp.diff(
                lambda p, j=j, n=numbers: exact(*n[: j + 1], p, *n[j + 2 :]), numbers[j + 1]
            )
            found.append((gradients[j][i].item(), slope, unit.get(letter, numbers[j + 1])))
        for k, (got, right, scale) in enumerate(found):
            tolerance = max(1e-3, 1e-6 * abs(found[0][1]), 1e-6 * abs(right * scale))
            if abs(right) < LARGEST and not abs(got - right) * scale <= tolerance:
                wrong.append(f"{name}{cell} {'value' if k == 0 else k}: {got}, {float(right)}")
    return wrong


@pytest.mark.parametrize("name", DENSITIES)
def test_a_density_and_its_gradient_in_float32_are_those_of_60_digits(name):
    cells = [tuple(float32(number) for number in cell) for cell in DENSITIES[name][2]]
    with mp.workdps(60):
        wrong = check(name, cells)
    assert not wrong, f"{len(wrong)} wrong numbers in {len(cells)} cells:\n" + "\n".join(wrong[:20])
