"""The bidirectional Mamba resampler."""
