"""Auto-Encoding Variational Bayes (Kingma & Welling, 2013) on Pyro."""

from pyro_vae import guides, likelihoods, networks, priors

__all__ = ["guides", "likelihoods", "networks", "priors"]
__version__ = "0.1.0"
