"""effvl: vision and vision-language models made cheaper to train, prune, adapt and run."""

__version__ = "0.1.0"
