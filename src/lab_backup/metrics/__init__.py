"""Figures for Prometheus. It knows numbers, and neither tables nor requests."""
