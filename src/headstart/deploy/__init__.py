"""Deployment of a finished run: personalization on a user's own clients, and export as an artifact for devices."""
