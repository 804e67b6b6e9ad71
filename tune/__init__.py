"""Sweeps over recipes with Ray Tune."""
