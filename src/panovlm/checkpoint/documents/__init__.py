"""Layer 1: what a checkpoint's documents say about the model."""
