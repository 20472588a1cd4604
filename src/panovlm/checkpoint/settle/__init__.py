"""Layers 2 and 3: what the weights show, and the order of trust that decides every field."""
