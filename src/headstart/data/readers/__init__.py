"""Readers, one for each layout that federations come in."""
