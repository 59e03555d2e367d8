"""Measurements of memory, time and the environment."""
