"""The benchmark: contracts, metrics, protocols, execution and the command line."""
