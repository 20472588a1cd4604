"""The average-pooling resampler."""
