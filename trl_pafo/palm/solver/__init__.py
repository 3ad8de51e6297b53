"""Search, pruning and certificate, from numbers alone."""
