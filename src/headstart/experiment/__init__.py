"""Experiments as values: what they are, how they are read and saved, and what they need to run."""
