"""Diagnostics of a posterior: calibration, gaps, AIS, MCMC, collapse, the trust card."""
