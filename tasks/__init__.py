"""What is attacked and defended: data, splits, input spaces, architectures and recipes."""
