"""Versions of Python and of the packages that determine the numbers of a run."""

import functools
import importlib.metadata
import sys

PACKAGES = ("pyro-vae", "pyro-ppl", "torch")


@functools.cache  # reads package metadata from the disk, about 15 ms
def versions(*others: str) -> dict[str, str]:
    """Return the versions of Python, of `PACKAGES` and of other installed distributions."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python} | {name: version(name) for name in (*PACKAGES, *others)}


def version(name: str) -> str:
    """Return the version of a distribution; "unknown" for a checkout that is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
