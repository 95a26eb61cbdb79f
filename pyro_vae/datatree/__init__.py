"""`from_pyro_svi`: the samples of a model/guide pair as an ArviZ `DataTree`."""
