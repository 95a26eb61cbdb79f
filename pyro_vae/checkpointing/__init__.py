"""Save and load state: models, checkpoints, optimizer state, the fingerprint of a run."""
