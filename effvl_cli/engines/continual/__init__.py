"""Engines of `effvl continual` and its verbs."""
