"""Metric kernels and the checked doors in front of them."""
