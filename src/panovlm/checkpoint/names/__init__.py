"""From the names in a file to the model's own names."""
