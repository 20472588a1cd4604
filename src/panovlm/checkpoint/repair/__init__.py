"""Giving checkpoints what they lack."""
