"""Decoders and likelihoods for the explorer, and their means by torch and by the page's script."""

import itertools
import json
import math
import shutil
import subprocess

import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.explorer.decoder import exported
from pyro_vae.explorer.explorer import module
from pyro_vae.networks import ACTIVATIONS, MLP, ConvDecoder, ConvEncoder, Standardized
from tests.support.catalogue import LIKELIHOODS

NODE = shutil.which("node")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
LATENTS, ROWS = 3, 5


def image_chain(*modules):
    return nn.Sequential(nn.Linear(LATENTS, 12), nn.Unflatten(1, (3, 2, 2)), *modules)


def normalized():
    layer = nn.BatchNorm2d(3)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2.0)
    return layer


NETWORKS = {
    **{f"MLP, {name}": lambda name=name: MLP(LATENTS, [7], 4, name) for name in ACTIVATIONS},
    "MLP, linear": lambda: MLP(LATENTS, [], (2, 3)),
    "MLP, gated": lambda: MLP(LATENTS, [7, 6], 4, block="gated"),
    "MLP, residual, normalized": lambda: MLP(LATENTS, [7, 6], 4, block="residual", norm="layer"),
    "ConvDecoder, gated, with a stem": lambda: ConvDecoder(
        LATENTS, [4, 3], (2, 8, 6), block="gated", num_blocks=2, stem=3
    ),
    "MLP, images": lambda: MLP((LATENTS,), [5, 6], (1, 4, 3), "relu"),
    "Standardized": lambda: Standardized(MLP(LATENTS, [5], 4), [1.0, -2.0, 0.5], [2.0, 0.5, 3.0]),
    "ConvDecoder": lambda: ConvDecoder(LATENTS, [4, 3, 2], (2, 9, 7)),
    "ConvDecoder, one level": lambda: ConvDecoder(LATENTS, [4], (1, 6, 6), "gelu"),
    "chain": lambda: nn.Sequential(nn.Linear(LATENTS, 4, bias=False), nn.ELU(0.5), nn.Dropout(0.5)),
    "GELU by tanh": lambda: nn.Sequential(nn.Linear(LATENTS, 4), nn.GELU("tanh"), nn.Identity()),
    "strides": lambda: image_chain(
        nn.Upsample(scale_factor=4), nn.Conv2d(3, 4, (3, 2), (2, 3), (1, 0), (1, 2))
    ),
    "transposed": lambda: image_chain(
        nn.ConvTranspose2d(3, 2, 4, 2, 1), nn.Tanh(), nn.ConvTranspose2d(2, 1, 3, 2, 1, (1, 0))
    ),
    "transposed, dilated": lambda: image_chain(
        nn.ConvTranspose2d(3, 2, (2, 3), (1, 3), (0, 1), dilation=(2, 1), bias=False)
    ),
    "BatchNorm2d": lambda: image_chain(normalized(), nn.LeakyReLU(0.3), nn.Flatten()),
    "ConvEncoder": lambda: image_chain(ConvEncoder((3, 2, 2), [4], (2, 2))),
    "Upsample to a size": lambda: image_chain(nn.Upsample(size=(5, 3)), nn.Softplus(2.0)),
}

# Likelihoods of images, with the number of decoder outputs for each pixel.
OF_IMAGES = {
    "Bernoulli": (1, pv.likelihoods.Bernoulli),
    "Beta": (2, lambda network: pv.likelihoods.Beta(network, "decoder")),
    "Categorical": (4, lambda network: pv.likelihoods.Categorical(network, 4)),
    "ContinuousBernoulli": (1, pv.likelihoods.ContinuousBernoulli),
    "DiscretizedLogistic": (2, lambda network: pv.likelihoods.DiscretizedLogistic(network)),
    "DiscretizedLogisticMixture": (6, lambda n: pv.likelihoods.DiscretizedLogisticMixture(n, 2)),
    "Laplace": (1, lambda network: pv.likelihoods.Laplace(network, shift=0.5, unit=3.0)),
    "LogNormal": (2, lambda network: pv.likelihoods.LogNormal(network, "decoder", unit=0.5)),
    "NegativeBinomial": (2, lambda n: pv.likelihoods.NegativeBinomial(n, "decoder")),
    "Normal": (2, lambda n: pv.likelihoods.Normal(n, "decoder", sigmoid_mean=True)),
    "Poisson": (1, pv.likelihoods.Poisson),
    "StudentT": (2, lambda n: pv.likelihoods.StudentT(n, "decoder", 4.0)),
    "ZeroInflatedNegativeBinomial": (2, pv.likelihoods.ZeroInflatedNegativeBinomial),
}
# Decoders of images of 2 channels, 6 x 4, for a number of outputs for each pixel.
DECODERS = {
    "MLP": lambda outputs: MLP(LATENTS, [9], (2 * outputs, 6, 4), "silu"),
    "ConvDecoder": lambda outputs: ConvDecoder(LATENTS, [4, 3], (2 * outputs, 6, 4)),
    "ConvTranspose2d": lambda outputs: nn.Sequential(
        nn.Linear(LATENTS, 18),
        nn.Unflatten(1, (3, 3, 2)),
        nn.SiLU(),
        nn.ConvTranspose2d(3, 2 * outputs, 4, 2, 1),
    ),
}


def vae_of(likelihood):
    # The explorer's decoder does not depend on the guide.
    guide = pv.guides.DiagonalNormal(MLP(2, [3], 2 * LATENTS))
    return pv.VAE(pv.priors.StandardNormal(LATENTS), likelihood, guide).eval()


def spread(likelihood):
    """Give all parameters of a likelihood values of usual size, biases too."""
    with torch.no_grad():
        for parameter in likelihood.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.copy_(torch.randn(parameter.shape) / math.sqrt(fan_in))
    return likelihood


def programs():
    """Return a VAE for each likelihood of the catalogue and for each network."""
    torch.manual_seed(0)
    found = {name: spread(line.build(LATENTS)) for name, line in LIKELIHOODS.items()}
    for name, build in NETWORKS.items():
        found[f"network: {name}"] = pv.likelihoods.Normal(spread(build()))
    for (name, (outputs, build)), network in itertools.product(OF_IMAGES.items(), DECODERS):
        decoder = DECODERS[network](outputs)
        found[f"images: {name}, {network}"] = spread(build(decoder))
    return {name: vae_of(likelihood) for name, likelihood in found.items()}


@torch.no_grad()
def compared(vaes, path):
    """Return the largest difference of the script's means from `vae.decode`, for each VAE.

    Differences are relative to means above 1. `path` is a folder for the script.
    """
    torch.manual_seed(1)
    cases = []
    for vae in vaes.values():
        z = 2 * torch.randn(ROWS, LATENTS)
        means = vae.decode(z).mean.flatten(1)
        cases.append({"decoder": exported(vae, z), "z": z.tolist(), "means": means.tolist()})
    (path / "explorer.mjs").write_text(module())
    (path / "cases.json").write_text(json.dumps(cases, allow_nan=False))
    (path / "run.mjs").write_text(
        """
        import { readFileSync } from "node:fs";
        import { decoderOf } from "./explorer.mjs";
        const cases = JSON.parse(readFileSync(new URL("./cases.json", import.meta.url)));
        console.log(JSON.stringify(cases.map(({ decoder, z, means }) => {
          const decode = decoderOf(decoder);
          const found = z.map((row) => Array.from(decode(row).mean));
          const worst = means.map((mean, row) => mean.length === found[row].length ? Math.max(
            ...mean.map((v, i) => Math.abs(v - found[row][i]) / Math.max(1, Math.abs(v)))) : 1e9);
          return Math.max(...worst);
        })));
        """
    )
    done = subprocess.run(
        [NODE, path / "run.mjs"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    return dict(zip(vaes, json.loads(done.stdout), strict=True))
