"""Whether the particles of an objective can run in one plate."""

import contextlib
from collections.abc import Mapping

from pyro_vae.pairs.pair import PairError, Program
from pyro_vae.pairs.runner import PairRunner
from pyro_vae.pairs.state import unchanged


def accepts_particles(
    model: Program, guide: Program, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> bool:
    """Return whether a pair runs in one more plate on the left, with the same log densities.

    Networks that expect a fixed number of dimensions, such as `nn.ConvTranspose2d`, do not accept
    this plate. The pair is unchanged. If it cannot be run, the result is True, and the caller's run
    raises the error.
    """
    with unchanged(model, guide), contextlib.suppress(PairError):
        return PairRunner(model, guide, args, kwargs).layout.vectorized
    return True
