"""Options of `effvl continual` and its verbs, each in a file of its own."""

from effvl_cli.config.continual_learn import ContinualConfig

__all__ = ["ContinualConfig"]
