"""headstart: one initial model for a federation, which a few local steps make each client's own."""

__version__ = "0.1.0"
