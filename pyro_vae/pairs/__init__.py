"""Run any model/guide pair over samples and batches: sites, log weights, checks."""
