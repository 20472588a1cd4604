"""From pixels to vision tokens."""
