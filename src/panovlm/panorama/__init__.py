"""Panoramas: spherical geometry, projection, views."""
