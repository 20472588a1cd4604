"""The resampler that leaves tokens as they are."""
