"""Checks of a machine and of a cluster: one module per family, each check a function that gives a Finding."""
