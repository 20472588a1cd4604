"""The convolutional resampler."""
