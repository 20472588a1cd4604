"""The golden probe: what a model computes on a fixed input, kept with its weights."""
