"""Models: two functions, and those that are built in."""
