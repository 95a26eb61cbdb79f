"""`fit`: the loop over epochs, validation, early stopping, and recovery from NaN."""
