"""How a system is attacked: one folder per vector, one file per attack."""
