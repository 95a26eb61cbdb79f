"""Encoder and decoder of a VAE as programs of `torch.export`, without Pyro and this package."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.pairs.pair import PairError
from pyro_vae.runtime.files import replace_folder
from pyro_vae.runtime.random_state import preserved_state

Density: TypeAlias = Callable[..., Distribution]  # of latents or data, given tensors
ENCODER, DECODER = "encoder.pt2", "decoder.pt2"
BATCH_SIZES = (1, 2, 17)  # of the comparison with the original
SEED = 0


class Encoder(nn.Module):
    """Maps x to mean and standard deviation of q(z|x)."""

    def __init__(self, guide: Density) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, each of shape `(num_data, latent_dim)`."""
        q = self.guide(x, *context)
        return _moment(q, "mean"), _moment(q, "stddev")


class Decoder(nn.Module):
    """Maps z to the mean of p(x|z)."""

    def __init__(self, likelihood: Density) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, z: Tensor, *context: Tensor) -> tuple[Tensor]:
        """Return the mean, shape `(num_data, *event)`."""
        return (_moment(self.likelihood(z, *context), "mean"),)


class _NoMomentError(Exception):
    """A distribution has no mean or standard deviation in closed form."""


def _moment(distribution: Distribution, name: str) -> Tensor:
    try:
        return getattr(distribution, name)
    except NotImplementedError:
        raise _NoMomentError(
            f"its distribution, {type(distribution).__name__}, has no {name} in closed form"
        ) from None


def export(
    likelihood: Density, guide: Density, x: Tensor, z: Tensor, path: Path, *context: Tensor
) -> None:
    """Write encoder and decoder to the folder `path`. Nothing is written if one of them fails.

    Args:
        likelihood: Likelihood p(x|z), or p(x|z, y).
        guide: Guide q(z|x), or q(z|x, y).
        x: Examples of x, at least as many as the largest of `BATCH_SIZES`.
        z: Examples of z, as many.
        path: Folder to write.
        context: Examples of y, as many, for parts that take y.

    Raises:
        PairError: If a part cannot be exported, or its program computes other numbers.
        CheckpointError: If the folder has other files.
    """
    files = {
        ENCODER: _program("guide", guide, Encoder(guide), x, *context),
        DECODER: _program("likelihood", likelihood, Decoder(likelihood), z, *context),
    }
    replace_folder(path, files, "exported model")


def _program(role: str, part: object, module: nn.Module, *rows: Tensor) -> bytes:
    """Return a module as the bytes of a program, read back and compared with the module."""
    name = getattr(part, "__name__", type(part).__name__)
    try:
        with preserved_state(SEED), pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's tracer
            batches = {size: tuple(v[:size] for v in rows) for size in BATCH_SIZES}
            first, *others = ({0: torch.export.Dim.DYNAMIC} for _ in rows)
            dynamic = (first, tuple(others)) if others else (first,)
            program = torch.export.export(module.eval(), batches[2], dynamic_shapes=dynamic)
            file = io.BytesIO()
            torch.export.save(program, file)
            loaded = torch.export.load(io.BytesIO(file.getvalue())).module()
            found = [(loaded(*batch), module(*batch)) for batch in batches.values()]
    except Exception as error:  # the tracer raises exceptions of many kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise PairError(
            f"the {role} {name} cannot be exported: {reason}. The saved model, vae.save(path), is "
            "not restricted in this way"
        ) from error
    for given, expected in found:
        if not all(map(_close, given, expected)):
            raise PairError(
                f"the exported program of the {role} {name} computes other numbers than the "
                f"{role}, for a batch of {len(expected[0])} rows: values of tensors may decide "
                "what it computes, or it may be random"
            )
    return file.getvalue()


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
