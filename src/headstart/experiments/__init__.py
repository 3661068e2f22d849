"""Experiments that come with headstart: one file each, defining `EXPERIMENT`."""
