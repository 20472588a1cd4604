"""The token-wise MLP resampler."""
