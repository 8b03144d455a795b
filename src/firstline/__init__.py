"""firstline: a benchmark suite and leaderboard for defenses of machine-learning systems."""

__version__ = "0.1.0"
