"""Writing checkpoints, whole or not at all."""
