"""The Pyro programs: `VAE`, `LadderVAE` and `MixedVAE`."""
