"""A finished run on clients of one's own, and as an artifact for devices."""
