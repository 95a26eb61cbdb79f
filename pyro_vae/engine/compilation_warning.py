"""Warnings about steps that should be compiled and run eagerly."""

import warnings


class CompilationWarning(UserWarning):
    """A program that should be compiled runs eagerly; the message gives the reason.

    Example:
        >>> import warnings
        >>> import pyro_vae as pv
        >>> from pyro_vae.engine.compilation_warning import warn_of_eager_steps
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always", pv.CompilationWarning)
        ...     warn_of_eager_steps("the model reads a file")
        >>> print(caught[0].message)
        training continues without compilation, because the model reads a file. Pass ...

    See also: `pyro_vae.SVI` and its argument `compile`.
    """


def warn_of_eager_steps(reason: str) -> None:
    """Warn that all further steps run eagerly; the reason completes "because ..."."""
    _warn(f"training continues without compilation, because {reason}", stacklevel=7)


def warn_of_limit(name: str, num_steps: int, num_programs: int) -> None:
    """Warn that steps with other values of a setting run eagerly."""
    _warn(
        f"steps with other values of {name} run eagerly: a program is compiled after "
        f"{num_steps:,} steps with the same values, for at most {num_programs} of them",
        stacklevel=8,
    )


def warn_of_context(reason: str) -> None:
    """Warn that steps run eagerly where they are called; the reason completes "because ..."."""
    _warn(f"steps run without compilation, because {reason}", stacklevel=6)


def _warn(text: str, *, stacklevel: int) -> None:
    """Warn at a level of the stack, counted from the caller of this function."""
    warnings.warn(
        f"{text}. Pass compile=False to silence this warning",
        CompilationWarning,
        stacklevel=stacklevel + 1,
    )
