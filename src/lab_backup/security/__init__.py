"""Secrets that are kept elsewhere."""
