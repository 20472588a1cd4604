"""What the commands tell of a checkpoint."""
