"""Adversarial examples: inputs moved within a threat so that the system errs."""
