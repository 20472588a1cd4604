"""The resampler that blanks random tokens in training."""
