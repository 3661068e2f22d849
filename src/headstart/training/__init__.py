"""The loop that makes a run of an experiment."""
