"""The Q-Former resampler."""
