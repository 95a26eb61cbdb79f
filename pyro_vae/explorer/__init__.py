"""The latent explorer: an interactive page of a VAE, and a widget for notebooks.

`explorer.js` is one ES module for pages and notebooks, joined from the scripts in this folder. The
decoder of the VAE is exported as layers and weights, and computed in the browser.
"""

from pyro_vae.explorer.explorer import Explorer

__all__ = ["Explorer"]
