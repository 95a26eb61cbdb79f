"""A part that returns no distribution is named in the error, in each role of each model."""

import pytest
import torch

import pyro_vae as pv
from pyro_vae import guides, likelihoods, networks, priors

X, Y = torch.ones(4, 5), torch.eye(2)[[0, 1, 0, 1]]


def mlp(width, out):
    return networks.MLP(width, [4], out)


def with_y(width, out):
    return networks.WithContext(mlp(width + 2, out), in_shape=width)


def vae(**parts):
    own = {
        "prior": priors.StandardNormal(3),
        "likelihood": likelihoods.Bernoulli(mlp(3, 5)),
        "guide": guides.DiagonalNormal(mlp(5, 6)),
    }
    return pv.VAE(**own | parts)


def conditional(**parts):
    own = {
        "prior": priors.StandardNormal(3),
        "likelihood": likelihoods.Bernoulli(with_y(3, 5)),
        "guide": guides.DiagonalNormal(with_y(5, 6)),
    }
    return pv.ConditionalVAE(**own | parts)


def ladder(**parts):
    own = {
        "prior": priors.StandardNormal(2),
        "decoders": [mlp(2, 6)],
        "likelihood": likelihoods.Bernoulli(mlp(3, 5)),
        "encoders": [mlp(5, 4), mlp(4, 4)],
        "latent_dims": [3, 2],
    }
    return pv.LadderVAE(**own | parts)


def mixed(**parts):
    own = {
        "discrete_prior": priors.Categorical(4),
        "prior": priors.StandardNormal(3),
        "likelihood": likelihoods.Bernoulli(mlp(7, 5)),
        "discrete_guide": guides.Categorical(mlp(5, 4)),
        "guide": guides.DiagonalNormal(mlp(5, 6)),
    }
    return pv.MixedVAE(**own | parts)


MODELS = {
    vae: ["prior", "likelihood", "guide"],
    conditional: ["prior", "likelihood", "guide"],
    ladder: ["prior", "likelihood"],
    mixed: ["discrete_prior", "prior", "likelihood", "discrete_guide", "guide"],
}
CELLS = [(make, role) for make, roles in MODELS.items() for role in roles]


def a_tensor(*values):
    return values[0] if values else torch.zeros(3)


def a_tuple(*values):
    return values


@pytest.mark.parametrize("part", [a_tensor, a_tuple])
@pytest.mark.parametrize(("make", "role"), CELLS)
def test_a_part_without_a_distribution_is_named(make, role, part):
    model = make(**{role: part})
    inputs = (X, Y) if make is conditional else (X,)
    data = inputs if make is conditional else X
    kind = role.removeprefix("discrete_")
    calls = [
        lambda: pv.fit(model, data, epochs=1),
        lambda: pv.evaluate(model, data, num_samples=2),
        lambda: (model.guide if kind == "guide" else model.model)(*inputs),
    ]
    if kind != "guide":
        calls.append(lambda: model.sample(y=Y) if make is conditional else model.sample(3))
    for call in calls:
        with pytest.raises(pv.PairError, match=rf"{kind}.* returned .*expected a distribution"):
            call()


@pytest.mark.parametrize("make", MODELS)
def test_parts_that_return_distributions_are_sampled(make):
    model = make()
    inputs = (X, Y) if make is conditional else (X,)
    model.guide(*inputs)
    assert model.model(*inputs).shape == X.shape
