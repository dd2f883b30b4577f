"""Direct block removal in residual networks (Wu, Davoodi and Hu, arXiv 2312.16904)."""

from .discover import Discovery, discover
from .score import BatchScores, Scorer
from .surgery import Pruned, Removal, apply_removals, bypassed, original_paths, prune
from .unit import Unit

__all__ = [
    "BatchScores",
    "Discovery",
    "Pruned",
    "Removal",
    "Scorer",
    "Unit",
    "apply_removals",
    "bypassed",
    "discover",
    "original_paths",
    "prune",
]
