"""Attacks of other libraries under our names, `library:attack`: same threat models, same meter, same checks."""
