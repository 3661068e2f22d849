"""The user's own machine measured."""
