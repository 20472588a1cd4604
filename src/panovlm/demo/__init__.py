"""The demonstration: train, evaluate, lose the metadata, evaluate again, repair."""
