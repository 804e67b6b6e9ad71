"""Readers of published files, one module for each layout; each gives a RawData."""
