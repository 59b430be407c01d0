"""Ensembles for other programs, and what other programs will say of a package."""
