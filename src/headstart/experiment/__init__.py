"""Experiments as values: their definition, reading and saving, and their preparation for a run."""
