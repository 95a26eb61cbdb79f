"""The folder of a training run and its HTML page."""
