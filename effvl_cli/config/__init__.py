"""Flat option dataclasses, one module per command, and their resolution."""
