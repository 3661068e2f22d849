"""`headstart compare`: which method personalizes best on a federation, for whom, and at what cost."""
