"""Training: the three stages, one after the other."""
