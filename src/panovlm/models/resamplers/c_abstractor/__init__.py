"""The C-Abstractor."""
