"""PanoVLM."""
