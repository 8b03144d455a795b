"""How each vector is measured."""
