"""Run folders: what is in them, and how they are read back."""
