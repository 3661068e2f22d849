"""`headstart compare`: which method personalizes best on a federation, for which clients, and at what cost."""
