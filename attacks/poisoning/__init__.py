"""Poisoned training data."""
