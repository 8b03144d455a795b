"""Checks that every registered item passes; shipped as `firstline check`."""
