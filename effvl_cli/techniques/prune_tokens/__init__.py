"""Patch-token pruning of Vision Transformers by a learned ranking (Wu, Lin, Hu, Morgado, WACV 2025, arXiv 2409.14607).

A greedy search orders the patches of an image by how little the tower's output suffers without them (`ranking`); a tiny
network learns to predict that order from the token states at an early depth (`predictor`); the tower then drops the
lowest ranked patches there and runs its remaining blocks on a shorter sequence (`tower`, with other ways to choose in
`selectors`); learnable tokens may make up for what is lost (`prompts`). `macs` counts what it saves.

Notation: B images, N patches on a grid, P prefix tokens (CLS, registers), D width, L blocks, E embedding width;
p the blocks run before pruning, K kept patches, v prompt tokens.
"""

from .losses import keepset_loss, listwise_loss, pairwise_loss
from .predictor import Predictor, make_predictor
from .ranking import Ranking, golden_ranking
from .selectors import CenterSelector, ClsAttentionSelector, GoldenSelector, GridSelector, NormSelector, RandomSelector
from .tome import MergedVision, merge_schedule
from .tower import PrunedVision, Selector, Tower, num_keep

__all__ = [
    "CenterSelector",
    "ClsAttentionSelector",
    "GoldenSelector",
    "GridSelector",
    "MergedVision",
    "NormSelector",
    "Predictor",
    "PrunedVision",
    "RandomSelector",
    "Ranking",
    "Selector",
    "Tower",
    "golden_ranking",
    "keepset_loss",
    "listwise_loss",
    "make_predictor",
    "merge_schedule",
    "num_keep",
    "pairwise_loss",
]
