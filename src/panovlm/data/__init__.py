"""Tables, synthetic scenes, datasets and loaders."""
