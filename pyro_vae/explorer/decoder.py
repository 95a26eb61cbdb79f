"""The decoder of a VAE as data: layers, and their weights in base64."""

import base64
import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.explorer.layers import Layer, Layers
from pyro_vae.explorer.means import layers_of
from pyro_vae.models.any_vae import AnyVAE
from pyro_vae.models.ladder import LadderVAE
from pyro_vae.pairs.pair import PairError
from pyro_vae.runtime.files import JSONObject

FLOAT32_BYTES = 3_000_000  # larger decoders are stored in float16
MAX_BYTES = 4_500_000
TOLERANCE = 1e-3  # of E[x|z], in units of the larger of 1 and its size


@torch.no_grad()
def exported(vae: AnyVAE, z: Tensor, *context: Tensor) -> JSONObject:
    """Return the map from z to E[x|z] as data for `decoder.js`; with a context, from z and y.

    Weights are stored in float32, and in float16 if they would need more than 3 MB and E[x|z]
    changes by less than 0.001.

    Args:
        vae: The VAE.
        z: Samples of the prior, shape `(num_samples, latent_dim)`, to compare means at.
        *context: Context y of each sample, shape `(num_samples, context_size)`, or nothing.

    Raises:
        PairError: If a module cannot be run in a page, or the decoder is too large for one.
    """
    layers = Layers((sum(values.shape[1] for values in (z, *context)),))
    program = _conditional_means(vae, layers) if isinstance(vae, LadderVAE) else []
    program += layers_of(vae.model.likelihood, layers)
    dtype = "float32"
    if 4 * _size(layers.tensors) > FLOAT32_BYTES:
        dtype = "float16"
        if 2 * _size(layers.tensors) > MAX_BYTES:
            raise PairError(
                f"the decoder has {_size(layers.tensors):,} weights; a page holds at most "
                f"{MAX_BYTES // 2:,}. Train a smaller decoder to explore it"
            )
        _check_rounding(vae, z, *context)
    weights = [tensor.flatten().numpy().astype(dtype) for tensor in layers.tensors]
    return {
        "layers": program,
        "shapes": [list(tensor.shape) for tensor in layers.tensors],
        "weights": packed(np.concatenate(weights) if weights else np.zeros(0, dtype)),
    }


def _conditional_means(vae: LadderVAE, layers: Layers) -> list[Layer]:
    """Return the layers from z_L to z_1, each layer at its mean given the layer above."""
    found = []
    for decoder in vae.model.decoders:
        found += layers.of(decoder)
        layers.shape = (layers.shape[0] // 2,)  # loc, the first half of the outputs
        found.append({"op": "first", "shape": list(layers.shape)})
    return found


def packed(array: np.ndarray) -> JSONObject:
    """Return an array as its dtype and its bytes in base64, in little-endian order."""
    plain = array.astype(array.dtype.newbyteorder("<"))
    return {"dtype": array.dtype.name, "data": base64.b64encode(plain.tobytes()).decode()}


def _size(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _check_rounding(vae: AnyVAE, z: Tensor, *context: Tensor) -> None:
    """Check that weights in float16 do not change E[x|z].

    Raises:
        PairError: If it changes by 0.001 or more.
    """
    rounded: Any = copy.deepcopy(vae)
    for parameter in rounded.model.parameters():
        parameter.copy_(parameter.half().float())
    mean, changed = vae.decode(z, *context).mean, rounded.decode(z, *context).mean
    worst = ((mean - changed).abs() / mean.abs().clamp(min=1)).max().item()
    if not worst < TOLERANCE:
        raise PairError(
            f"the decoder is stored in float16 above {FLOAT32_BYTES // 4:,} weights, which changes "
            f"E[x|z] by {worst:.2g}; expected at most {TOLERANCE}. Train a smaller decoder to "
            "explore it"
        )


@torch.no_grad()
def checkpoint(vae: AnyVAE, z: Tensor, *context: Tensor) -> JSONObject:
    """Return one input of the decoder and E[x|z], which the page compares with its decoder."""
    mean = vae.decode(z[:1], *(y[:1] for y in context)).mean[0].flatten()
    return {"z": torch.cat([z[0], *(y[0] for y in context)]).tolist(), "mean": mean.tolist()}
