"""The command `pyro-vae`: calls the package's functions from a shell.

torch, Pyro and matplotlib are imported by the commands that use them, so that `--help` is fast.
"""

from pyro_vae.cli.app import app, main

__all__ = ["app", "main"]
