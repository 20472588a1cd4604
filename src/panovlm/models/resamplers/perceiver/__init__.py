"""The Perceiver resampler."""
