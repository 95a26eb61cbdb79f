"""`python -m pyro_vae` is the command `pyro-vae`."""

from pyro_vae.cli import main

main()
