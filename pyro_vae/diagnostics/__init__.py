"""How far a posterior can be trusted: calibration, gaps, AIS, MCMC, collapse, the trust card."""
