"""The engine: local SGD, rounds, personalization, and the contract of a method."""
