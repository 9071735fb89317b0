"""Reviewed facts as data, and the loaders that validate them."""
