"""Boxes of day and night: the cascade's head, subclasses of a condition."""
