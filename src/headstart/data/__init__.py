"""Federations: from files, from generators, on the devices."""
